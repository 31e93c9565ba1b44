from __future__ import annotations

import importlib.util
import json
import os
import platform
import py_compile
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest

from marsmith_handler.proof import digest_problems, environment_problems
from support.handler_fixtures import Worker, classifier_folder, write_examples, write_sums
from support.pictures import picture

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


SOURCE = "import math\n\nFACTS = {'a': (1, 2.0, None)}\n\n\ndef area(r):\n    return [math.pi * x * x for x in r]\n"
# What a handler may write: nothing imports, links or reads it unasked.
DATA = [
    "requests.log",
    "cache/a.bin",
    "written.json",
    "core",
    "core.123",
    "core.json",
    "a.pt",
    "a.zip",
    "a.so.txt",
    ".lock",
]
# What could run, or be read in a member's place.
CODE = [
    *(
        "extra.py",
        "json.py",
        "core.py",
        "pkg/__init__.py",
        "cache/deep/x.py",
        "x.pyc",
        "pkg/__init__.pyc",
        "sitecustomize.py",
    ),
    *("x.so", f"helper{EXTENSION_SUFFIXES[0]}", "x.abi3.so", "pkg/libx.so.1.2", "x.dylib", "x.pth", "x.egg-link"),
    *("torch-9.9.dist-info/entry_points.txt", "torch-9.9.egg-info", "x.egg/EGG-INFO/PKG-INFO"),
    *("MAR-INF/environment.txt", "MAR-INF/notes", "vocab.txt", "source_vocab.pt"),
    *("__pycache__/other.cpython-311.pyc", "__pycache__/helper.pyc", "__pycache__/x.py"),
]


def with_source(folder: Path) -> Path:
    """Add a module to an archive, and the digests anew."""
    (folder / "helper.py").write_text(SOURCE, encoding="utf-8")
    write_sums(folder)
    return Path(cache_from_source(str(folder / "helper.py")))


@pytest.mark.parametrize("name", DATA)
def test_data_that_a_handler_writes_beside_the_members_does_not_spoil_an_archive(archive: Path, name: str) -> None:
    (archive / name).parent.mkdir(exist_ok=True)
    (archive / name).write_bytes(b"x")
    assert digest_problems(archive) == []


@pytest.mark.parametrize("name", CODE)
def test_what_could_run_or_be_read_beside_the_members_is_refused(archive: Path, name: str) -> None:
    with_source(archive)
    (archive / name).parent.mkdir(parents=True, exist_ok=True)
    (archive / name).write_bytes(b"x")
    assert digest_problems(archive) == [f"{name} was added"]


def test_a_file_that_the_handler_names_is_not_taken_from_beside_the_members(archive: Path) -> None:
    (archive / "names.json").write_text("{}", encoding="utf-8")
    assert digest_problems(archive) == []
    assert digest_problems(archive, read={"names.json"}) == ["names.json was added"]


def test_the_labels_of_a_configured_name_must_be_a_member(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "model", labels="names.json")
    write_sums(folder)
    Worker(folder, HANDLER)
    (folder / "names.json").write_text('{"0": "black"}', encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"names\.json was added"):
        Worker(folder, HANDLER)


def test_a_link_to_a_folder_is_refused_because_it_may_be_a_package(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (archive / "helper").symlink_to(tmp_path / "elsewhere")
    assert digest_problems(archive) == ["helper was added"]


def test_a_zip_is_refused_only_on_the_path_of_modules(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(archive / "more.data", "w") as file:
        file.writestr("surprise.py", "")
    assert digest_problems(archive) == []
    monkeypatch.syspath_prepend(str(archive / "more.data"))
    assert digest_problems(archive) == ["more.data was added"]


def test_bytecode_that_python_has_made_of_a_member_does_not_spoil_an_archive(archive: Path) -> None:
    bytecode = with_source(archive)
    run = [sys.executable, "-c", "import helper; assert helper.area([0]) == [0]"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(run, cwd=archive, env=environment, check=True)
    assert bytecode.is_file()
    # As it lies there while another worker writes it.
    bytecode.with_name(f"{bytecode.name}.140023").write_bytes(bytecode.read_bytes()[:100])
    assert digest_problems(archive) == []


@pytest.mark.parametrize(
    "source", ["", SOURCE.replace("math.pi", "math.e"), SOURCE.replace("2.0", "2"), f"{SOURCE}\n\nprint()\n"]
)
def test_bytecode_of_another_source_in_the_place_of_a_members_is_refused(archive: Path, source: str) -> None:
    bytecode = with_source(archive)
    planted = archive.parent / "planted.py"
    planted.write_text(source, encoding="utf-8")
    # Python runs bytecode of this kind without a look at the source.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(planted), str(bytecode), dfile="helper.py", invalidation_mode=unchecked)
    assert digest_problems(archive) == [f"__pycache__/{bytecode.name} was added"]


@pytest.mark.parametrize("content", [b"", b"x" * 40, importlib.util.MAGIC_NUMBER + bytes(40)])
def test_bytecode_that_cannot_be_read_is_refused(archive: Path, content: bytes) -> None:
    bytecode = with_source(archive)
    bytecode.parent.mkdir()
    bytecode.write_bytes(content)
    assert digest_problems(archive) == [f"__pycache__/{bytecode.name} was added"]


@pytest.mark.parametrize(
    "name", ["core", "core.py", "core.json", "core/x.py", "__pycache__/x.pyc", "a.mar", "lib.so", "x.pth"]
)
def test_no_name_of_a_member_is_special(tmp_path: Path, name: str) -> None:
    folder = classifier_folder(tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x = 1\n")
    write_sums(folder)
    assert digest_problems(folder) == []
    Worker(folder, HANDLER)
    (folder / name).write_bytes(b"x = 2\n")
    assert digest_problems(folder) == [f"{name} was changed"]
    (folder / name).unlink()
    assert digest_problems(folder) == [f"{name} is missing"]


def test_an_archive_of_ours_that_has_lost_its_digests_is_refused(archive: Path) -> None:
    manifest = archive / "MAR-INF" / "MANIFEST.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "marsmith": {"formatVersion": 1}}))
    (archive / "MAR-INF" / "SHA256SUMS").unlink()
    with pytest.raises(RuntimeError, match="MAR-INF/SHA256SUMS is missing"):
        Worker(archive, HANDLER)


def test_packages_that_torchserve_installs_beside_an_archive_do_not_spoil_it(archive: Path) -> None:
    (archive / "installed.py").write_text("", encoding="utf-8")
    assert digest_problems(archive) == ["installed.py was added"]
    assert digest_problems(archive, may_have_more=True) == []


@pytest.mark.parametrize("name", ["helper.so", "helper/__init__.py", "__pycache__/helper.cpython-311.pyc", "MAR-INF/x"])
def test_packages_installed_beside_an_archive_take_no_members_place(archive: Path, name: str) -> None:
    with_source(archive)
    (archive / name).parent.mkdir(exist_ok=True)
    (archive / name).write_bytes(b"")
    assert digest_problems(archive, may_have_more=True) == [f"{name} was added"]


@pytest.mark.parametrize(
    "name",
    ["lib/part.so", "lib/part/__init__.py", "lib/__pycache__/part.cpython-311.pyc", "lib.so", "lib.py"],
)
@pytest.mark.parametrize("may_have_more", [False, True])
def test_members_in_folders_keep_their_place_too(archive: Path, name: str, may_have_more: bool) -> None:
    (archive / "lib").mkdir()
    (archive / "lib" / "__init__.py").write_text("")
    (archive / "lib" / "part.py").write_text(SOURCE)
    write_sums(archive)
    assert digest_problems(archive) == []
    (archive / name).parent.mkdir(exist_ok=True)
    (archive / name).write_bytes(b"")
    assert digest_problems(archive, may_have_more=may_have_more) == [f"{name} was added"]


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
