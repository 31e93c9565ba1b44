from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from archive_proof import digest_problems, environment_problems
from handler_fixtures import Worker, classifier_folder, picture, write_examples, write_sums

HANDLER = "image_classifier_handler.py"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = classifier_folder(tmp_path / "model")
    write_sums(folder)
    return folder


def write_environment(folder: Path, *lines: str) -> None:
    (folder / "MAR-INF" / "environment.txt").write_text(
        "# validated with\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )


def with_settings(folder: Path, **settings: Any) -> None:
    file = folder / "model-config.yaml"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["handler"].update(settings)
    file.write_text(json.dumps(config), encoding="utf-8")


def test_an_archive_as_it_was_built_is_loaded(archive: Path) -> None:
    assert digest_problems(archive) == []
    assert Worker(archive, HANDLER).send(b"", headers={"describe": "True"})[0].json()["digests_verified"] is True


def test_the_digests_are_those_of_sha256sum(archive: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "--quiet", "MAR-INF/SHA256SUMS"], cwd=archive, check=False)
    assert done.returncode == 0


def test_a_changed_a_missing_and_an_added_file_are_all_named_and_the_archive_is_refused(archive: Path) -> None:
    with (archive / "model.pt").open("ab") as file:
        file.write(b"!")
    (archive / "index_to_name.json").unlink()
    (archive / "surprise.py").write_text("", encoding="utf-8")
    with pytest.raises(RuntimeError) as refused:
        Worker(archive, HANDLER)
    assert "index_to_name.json is missing; surprise.py was added; model.pt was changed" in str(refused.value)


def test_what_running_it_leaves_behind_does_not_spoil_an_archive(archive: Path) -> None:
    (archive / "__pycache__").mkdir()
    (archive / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    (archive / "core.123").write_bytes(b"x")
    assert digest_problems(archive) == []


def test_packages_that_torchserve_installs_beside_an_archive_do_not_spoil_it(archive: Path) -> None:
    (archive / "installed.py").write_text("", encoding="utf-8")
    assert digest_problems(archive) == ["installed.py was added"]
    assert digest_problems(archive, may_have_more=True) == []


def test_an_archive_without_digests_is_loaded_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = classifier_folder(tmp_path / "model")
    with caplog.at_level("INFO"):
        Worker(folder, HANDLER)
    assert "its digests are not verified" in caplog.text


def test_a_damaged_list_of_digests_is_refused(archive: Path) -> None:
    (archive / "MAR-INF" / "SHA256SUMS").write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="not a line of sha256sum"):
        Worker(archive, HANDLER)


def test_the_environment_that_was_validated_has_no_differences(tmp_path: Path) -> None:
    (tmp_path / "MAR-INF").mkdir()
    write_environment(tmp_path, f"python=={platform.python_version()}", f"torch=={version('torch')}")
    assert environment_problems(tmp_path) == []


@pytest.mark.parametrize(("policy", "loads"), [("strict", False), ("warn", True), ("off", True)])
def test_another_environment_is_refused_told_or_ignored_as_the_policy_says(
    tmp_path: Path, policy: str, loads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = classifier_folder(tmp_path / "model", environment=policy)
    write_environment(folder, "python==2.7.18", "no-such-package==1.0")
    expected = "no-such-package is not installed, validated with 1.0"
    if not loads:
        with pytest.raises(RuntimeError, match=f"python is .*, validated with 2.7.18; {expected}"):
            Worker(folder, HANDLER)
        return
    Worker(folder, HANDLER)
    assert (expected in caplog.text) == (policy == "warn")


def test_every_example_is_replayed_alone_and_in_a_full_batch(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "model")
    worker = Worker(folder, HANDLER)
    files = {"red.png": picture(255, 0, 0), "broken.bin": b"no image"}
    replies = dict(zip(files, worker.send(*files.values()), strict=True))
    examples = [
        {"input": name, "content_type": "image/png", "status": reply.status, "reply": reply.json(), "tolerance": 1e-3}
        for name, reply in replies.items()
    ]
    examples[1]["reply"]["request_id"] = "example-broken.bin"
    write_examples(folder, examples, files)
    assert Worker(folder, HANDLER).send(b"", headers={"describe": "True"})[0].json()["examples_replayed"] == 2
    (folder / "MAR-INF" / "examples" / "red.png").write_bytes(picture(0, 0, 255))
    with pytest.raises(RuntimeError, match=r"example 'red.png' alone: .*example 'red.png' in a batch of 4: "):
        Worker(folder, HANDLER)


def test_an_example_with_another_status_or_another_digest_is_named(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "model")
    example = {"input": "red.png", "content_type": "image/png", "status": 422, "reply": None, "tolerance": 0.0}
    write_examples(folder, [example], {"red.png": picture(255, 0, 0)})
    with pytest.raises(RuntimeError, match="status 200 instead of 422"):
        Worker(folder, HANDLER)
    write_examples(folder, [{**example, "status": 200, "reply_sha256": "0" * 64}], {})
    with pytest.raises(RuntimeError, match="not those that were validated"):
        Worker(folder, HANDLER)
