"""What of a model store is served, and what is left out with a reason: one bad archive never stops the others."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.archive import Policy
from marsmith.archive.store import load_items
from marsmith.errors import PreflightError
from marsmith.project import Project
from marsmith.run_state import LeftOut, RunState
from marsmith.server import state as server_state
from marsmith.server.java import Java
from marsmith.server.placeholder import is_placeholder
from marsmith.server.preflight import PreflightResult
from marsmith.server.selection import Selection, select
from marsmith.server.served import next_state, plan_serving
from marsmith.server.start_plan import StartPlan, models_argument, plan_start
from marsmith.state.served import ServerState
from marsmith.state.served_file import Remembered
from support.live_server import make_project, tiny_archive
from support.states import ONE, state_of, status

MANIFEST = '{"runtime": "python", "model": {"modelName": "m", "modelVersion": "1", "handler": "h.py:handle"%s}}'
GOOD = {"MAR-INF/MANIFEST.json": MANIFEST % "", "h.py": "def handle(data, context): return data\n"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose store holds one sound archive."""
    return make_project(tmp_path / "p", {"echo-1.0.mar": tiny_archive(tmp_path / "echo.mar")})


def selection_of(project: Project, load_models: str = "all", known: tuple[str, ...] = ()) -> Selection:
    return select(load_items(project.model_store, load_models), known)


def reasons(project: Project, load_models: str = "all") -> dict[str, str]:
    found = selection_of(project, load_models)
    assert [archive.path.name for archive in found.served] == ["echo-1.0.mar"]
    return {each.file: each.reason for each in found.left_out}


def write(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_config(path: Path, config: str) -> Path:
    return write(path, **{**GOOD, "MAR-INF/MANIFEST.json": MANIFEST % ', "configFile": "c.yaml"', "c.yaml": config})


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"MAR-INF/MANIFEST.json": "{"}, "MAR-INF/MANIFEST.json: not valid JSON"),
        ({"MAR-INF/MANIFEST.json": MANIFEST % ', "serializedFile": "w.pt"'}, "its manifest names h.py, w.pt, which"),
        ({"h.py": ""}, "no MAR-INF/MANIFEST.json: not a model archive"),
        ({**GOOD, "MAR-INF/examples/examples.json": "[{}]"}, "MAR-INF/examples/examples.json"),
    ],
)
def test_an_archive_that_cannot_load_is_left_out_with_the_reason(
    project: Project, members: dict[str, str], reason: str
) -> None:
    write(project.model_store / "m-1.mar", **members)
    assert reasons(project)["m-1.mar"].startswith(reason)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "the model config is empty"),
        ("# comments only\n\n", "expected a mapping"),
        ("- minWorkers: 1\n", "expected a mapping"),
        ("only a text\n", "expected a mapping"),
        ("42\n", "expected a mapping"),
        ("{", "not valid YAML"),
        ("minWorkers: one\n", "minWorkers is 'one', not a whole number"),
        ("batchsize: 8\n", "unknown key 'batchsize'; did you mean 'batchSize'?"),
    ],
)
def test_what_lint_calls_an_error_in_a_model_config_leaves_the_archive_out(
    project: Project, config: str, reason: str
) -> None:
    with_config(project.model_store / "m-1.mar", config)
    assert reason in reasons(project)["m-1.mar"]
    assert "\n" not in reasons(project)["m-1.mar"]


def test_what_is_not_an_archive_is_left_out_with_a_notice(project: Project) -> None:
    store = project.model_store
    (store / "lost+found").mkdir()
    (store / "lost+found").chmod(0o000)
    (store / "old").mkdir()
    (store / "weights.pt").write_bytes(b"PK")
    (store / "dangling").symlink_to(store / "nowhere")
    os.mkfifo(store / "pipe")
    for expected in (".hidden", "README.txt", "echo-1.0.mar.sig"):
        (store / expected).touch()
    folder, other = "a folder that is not an archive", "not an archive"
    assert reasons(project) == {
        "lost+found": folder,
        "old": folder,
        "weights.pt": other,
        "dangling": other,
        "pipe": other,
    }
    assert not any(each.is_archive for each in selection_of(project).left_out)


def test_an_archive_that_cannot_be_read_is_left_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.model_store / "gone-1.mar").symlink_to(project.model_store / "nowhere")
    os.mkfifo(project.model_store / "pipe-1.mar")
    (project.model_store / "folder-1" / "MAR-INF" / "MANIFEST.json").mkdir(parents=True)
    found = reasons(project)
    assert found["gone-1.mar"] == "no such file"
    assert found["pipe-1.mar"] == "not a file"
    assert "not a model archive" in found["folder-1"]


def test_a_name_that_torchserve_cannot_be_given_is_left_out(project: Project, tmp_path: Path) -> None:
    store = project.model_store
    for name in ("a,b.mar", "a\\b.mar", "a..b.mar", "http:a.mar"):
        tiny_archive(store / name, name="other")
    zipped = tiny_archive(tmp_path / "other.mar", name="zipped")
    (store / "zipped.tar.gz").write_bytes(zipped.read_bytes())
    with tarfile.open(store / "packed.mar", "w:gz") as packed:
        for member, content in GOOD.items():
            (tmp_path / "member").write_text(content)
            packed.add(tmp_path / "member", f"packed/{member}")
    found = reasons(project)
    assert len(found) == 6
    assert "comma" in found["a,b.mar"]
    assert "its content is a mar" in found["zipped.tar.gz"]
    assert "its content is a tar.gz" in found["packed.mar"]


def test_of_twins_the_one_that_was_served_before_is_meant_and_without_one_none(
    project: Project, tmp_path: Path
) -> None:
    for name in ("a.mar", "b.mar"):
        tiny_archive(project.model_store / name, name="twin")
    assert set(reasons(project).items()) == {(n, "a.mar and b.mar are both twin:1.0") for n in ("a.mar", "b.mar")}
    known = selection_of(project, known=("b.mar",))
    assert [archive.path.name for archive in known.served] == ["b.mar", "echo-1.0.mar"]
    assert [each.file for each in known.left_out] == ["a.mar"]


def test_a_list_names_files_aliases_and_urls(project: Project, tmp_path: Path) -> None:
    tiny_archive(project.model_store / "other.mar", name="other")
    listed = " echo-1.0.mar, cat=other.mar ,https://host/x.mar?a=b, gone.mar"
    found = selection_of(project, listed)
    assert [archive.version for archive in found.served] == [("echo", "1.0"), ("cat", "1.0")]
    assert [each.file for each in found.left_out] == ["gone.mar"]
    assert arguments(project, listed) == ["-m", "cat=other.mar", "echo-1.0.mar", "https://host/x.mar?a=b"]


def test_the_server_is_always_told_by_name_what_to_load(project: Project) -> None:
    assert arguments(project) == ["-m", "echo-1.0.mar"]
    (project.model_store / "lost+found").mkdir()
    (project.model_store / "echo-1.0.mar").rename(project.model_store / "-e=1.0.mar")
    assert arguments(project) == ["-m", "echo=-e=1.0.mar"]
    (project.model_store / "-e=1.0.mar").rename(project.model_store / "-e.mar")
    assert arguments(project) == ["-m", "./-e.mar"]
    (project.model_store / "-e.mar").unlink()
    assert arguments(project) == ["-m", ""]


def flight(project: Project, load_models: str = "all", known: tuple[str, ...] = ()) -> PreflightResult:
    config = {"model_store": str(project.model_store), "load_models": load_models}
    return PreflightResult(
        Java(Path("java"), 21, "test"), project.root, config, selection_of(project, load_models, known)
    )


def plan(project: Project, load_models: str = "all", state: ServerState | None = None) -> StartPlan:
    return plan_start(project, flight(project, load_models), Remembered(state), None)


def arguments(project: Project, load_models: str = "all", state: ServerState | None = None) -> list[str]:
    return models_argument(project, plan(project, load_models, state))


def test_a_start_that_would_serve_nothing_is_refused_and_an_empty_store_is_not(project: Project) -> None:
    (project.model_store / "lost+found").mkdir()
    (project.model_store / "echo-1.0.mar").write_bytes(b"PK")
    with pytest.raises(PreflightError, match=r"echo-1\.0\.mar: "):
        plan(project)
    assert plan(project, "https://host/x.mar,echo-1.0.mar").serving.archives == ()
    (project.model_store / "echo-1.0.mar").unlink()
    assert [each.file for each in plan(project).left_out] == ["lost+found"]


def test_a_default_that_is_left_out_is_replaced_by_a_placeholder_and_stays_remembered(
    project: Project, tmp_path: Path
) -> None:
    (project.model_store / "echo-2.0.mar").write_bytes(b"PK")
    state = state_of("2.0", {"1.0": ONE, "2.0": ONE})
    notes: list[str] = []
    decided = plan_start(project, flight(project), Remembered(state), notes.append)
    assert decided.serving.defaults == {"echo": "2.0"}
    assert decided.serving.placeholders == (("echo", "2.0"),)
    assert decided.serving.workers == {("echo", "2.0"): (0, 0)}
    assert notes[0].startswith("left out: echo-2.0.mar: ")
    assert notes[1:] == ["echo:2.0 is the default and left out: requests without a version get 503"]
    _, placeholder, real = models_argument(project, decided)
    assert real == "echo-1.0.mar"
    assert (Path(placeholder) / "MAR-INF" / "MANIFEST.json").is_file()
    stand_in = replace(status("2.0", default=True, workers=0), archive_url=placeholder)
    assert is_placeholder(stand_in)
    seen = [status("1.0"), stand_in]
    assert next_state(state, seen, {}, lambda _: True, left_out={"echo-2.0.mar"}) == state
    # An operator who chooses another version meanwhile is followed.
    seen = [status("1.0", default=True), replace(stand_in, default=False)]
    chosen = next_state(state, seen, {}, lambda _: True, left_out={"echo-2.0.mar"})
    assert chosen == ServerState({"echo": replace(state.models["echo"], default="1.0")})


def test_a_version_that_is_left_out_is_not_taken_for_unregistered(project: Project) -> None:
    state = state_of("1.0", {"1.0": ONE, "2.0": ONE})
    left_out = [LeftOut("echo-2.0.mar", "damaged")]
    serving = plan_serving(selection_of(project).served, state, {}, left_out=left_out)
    assert serving.placeholders == ()
    assert serving.notes == ()
    after = next_state(state, [status("1.0", default=True)], {}, lambda _: True, left_out={"echo-2.0.mar"})
    assert after == state
    only = next_state(state, [], {}, lambda _: True, left_out={"echo-2.0.mar"})
    assert only.models["echo"].default == "2.0"
    assert list(only.unregistered) == [("echo", "1.0")]


def test_what_is_left_out_is_kept_with_the_state_of_the_server(project: Project) -> None:
    left_out = (LeftOut("a.mar", "damaged", "build it again"), LeftOut("lost+found", "a folder", is_archive=False))
    state = RunState(1, 2.0, "a", "b", "c", "d", "e", project.run, tokens=True, left_out=left_out)
    run_state.write(project, state)
    assert run_state.read(project) == state
    assert server_state._left_out(project) == {"a.mar", "lost+found"}
    (project.run / run_state.FILE_NAME).write_text("[")
    assert server_state._left_out(project) == frozenset()


@pytest.mark.parametrize("policy", [Policy(archives="ours"), Policy(trusted_keys=(Path("key.pem"),))])
def test_a_url_is_left_out_where_the_policy_asks_for_something(project: Project, policy: Policy) -> None:
    items = load_items(project.model_store, "https://models.example.org/m.mar")
    assert select(items).left_out == ()
    [left] = select(items, policy=policy).left_out
    assert left.file == "https://models.example.org/m.mar"
    decided = plan(project, left.file)
    assert left.file in models_argument(project, decided)
    assert left.file not in models_argument(project, replace(decided, left_out=(left,)))


def test_a_snapshot_that_names_an_archive_which_is_not_admitted_is_refused(project: Project) -> None:
    snapshot = {"name": "s", "modelCount": 1, "models": {"echo": {"1.0": {"marName": "echo-1.0.mar"}}}}
    config = {**flight(project).config, "model_snapshot": json.dumps(snapshot)}
    assert plan_start(project, replace(flight(project), config=config), Remembered(None), None).serving.archives
    refusing = replace(flight(project), config=config, policy=Policy(archives="ours"))
    with pytest.raises(PreflightError, match=r"echo-1\.0\.mar: .*another tool built it"):
        plan_start(project, refusing, Remembered(None), None)
    other = replace(flight(project), config={**config, "model_snapshot": "{"})
    assert plan_start(project, other, Remembered(None), None).serving.archives
