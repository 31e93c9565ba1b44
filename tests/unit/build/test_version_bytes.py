"""A version stays what it was: no other bytes under its name, in whatever way they come; and the ways out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from marsmith.archive import Archive
from marsmith.archive.store import load_items, open_stored
from marsmith.build import build_from_spec
from marsmith.cli import main
from marsmith.config import load_spec
from marsmith.config.server_config import model_store
from marsmith.errors import OtherBytesError, ServerError
from marsmith.names import ModelVersion
from marsmith.project import Project
from marsmith.server.selection import select
from marsmith.server.served import plan_serving
from marsmith.server.start_plan import _renewed
from marsmith.state import served_file
from marsmith.state.journal import Change, Journal, JournalFile, Release
from marsmith.state.served import ArchiveBytes, Parameters, ServedModel, ServedVersion, ServerState
from marsmith.state.version_bytes import binding, bound_digest, check_bytes, check_stored, guard
from support.deploy_fixtures import write_version
from support.export_fixtures import write_tiny
from support.live_server import make_project
from support.projects import copy_project

ONE = Parameters(1, 1, 1, 1, 20, 60)
OTHER = "time.sleep(0)"


def digest(path: Path) -> str:
    return Archive.open(path).digest()


def served(project: Project, *versions: ModelVersion, folder: Path | None = None) -> None:
    """Remember a server that served these versions from the store, the first of each model as its default."""
    models: dict[str, ServedModel] = {}
    for version in versions:
        path = (folder or model_store(project)) / f"{version.name}-{version.version}.mar"
        known = ServedVersion(path.name, ONE, ONE, ArchiveBytes(digest(path), ours=False))
        model = models.get(version.name) or ServedModel(version.version, {})
        models[version.name] = replace(model, versions={**model.versions, version.version: known})
    served_file.save(project, ServerState(models))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


V1, V2 = ModelVersion("echo", "1.0"), ModelVersion("echo", "2.0")


def test_a_version_is_bound_by_what_was_served_and_by_what_a_deploy_may_go_back_to(
    project: Project, tmp_path: Path
) -> None:
    store = model_store(project)
    archive = write_version(store, "1.0")
    assert bound_digest(project, V1) is None
    JournalFile.of(project, "echo").write(Journal("echo", (Release("1.0", archive.name, "ab" * 32, 1),)))
    assert bound_digest(project, V1) == "ab" * 32
    # What runs counts before what ran once.
    served(project, V1)
    bound = binding(project, V1)
    assert bound
    assert (bound.digest, bound.registered, bound.journalled, bound.ours) == (digest(archive), True, True, False)
    check_bytes(project, V1, archive, digest(archive))
    other = write_version(tmp_path, "1.0", at_request=OTHER)
    with pytest.raises(OtherBytesError) as caught:
        check_bytes(project, V1, other, digest(other))
    assert digest(archive)[:16] in caught.value.message
    assert digest(other)[:16] in caught.value.message
    assert "marsmith unregister echo:1.0 --forget" in str(caught.value.tip)


def test_what_an_interrupted_deploy_needs_is_bound_and_not_forgotten(project: Project) -> None:
    target, before = Release("2.0", "echo-2.0.mar", "cd" * 32, 1), Release("1.0", "echo-1.0.mar", "ab" * 32, 1)
    change = Change("deploy", target, before, False, 0, True, 2, "watch")
    file = JournalFile.of(project, "echo")
    file.write(Journal("echo", (), change))
    assert (bound_digest(project, V1), bound_digest(project, V2)) == ("ab" * 32, "cd" * 32)
    for version in ("1.0", "2.0"):
        with pytest.raises(ServerError, match="was interrupted and needs"):
            file.forget(version)


def test_no_new_archive_takes_the_place_of_one_that_is_bound(project: Project, tmp_path: Path) -> None:
    store = model_store(project)
    archive = write_version(store, "1.0")
    served(project, V1)
    assert guard(store / "echo-2.0.mar", V2) is None
    assert guard(tmp_path / "echo-1.0.mar", V1) is None
    for target, version in ((archive, V1), (store / "built.mar", V1), (archive, V2)):
        check = guard(target, version)
        assert check
        check(digest(archive))
        with pytest.raises(OtherBytesError, match=r"echo:1\.0 is registered with SHA-256"):
            check("ab" * 32)


def test_pack_and_repack_keep_their_hands_off_a_bound_archive(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = model_store(project)
    archive = write_version(store, "1.0")
    served(project, V1)
    before = archive.read_bytes()
    other = write_version(tmp_path, "1.0", at_request=OTHER)
    # From anywhere: whose store it is, the folder itself tells.
    monkeypatch.chdir(tmp_path)
    assert main(["repack", str(other), "--output", str(archive), "--force"]) == 2
    handler = tmp_path / "h.py"
    handler.write_text("def handle(data, context):\n    return data\n")
    flags = ["--handler", str(handler), "--export-path", str(store), "--force", "--version", "1.0"]
    assert main(["pack", "--model-name", "echo", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("is registered with SHA-256") == 2
    assert error.count("TIP: give the new archive a version number of its own") == 2
    assert archive.read_bytes() == before
    assert sorted(path.name for path in store.iterdir()) == ["README.md", archive.name]
    assert main(["pack", "--model-name", "another", *flags]) == 0


def test_a_handler_that_was_edited_needs_a_new_version_or_the_old_one_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = write_tiny(copy_project(tmp_path / "copy"))
    spec = load_spec(project, "tiny")
    first = build_from_spec(project, spec)
    served(project, ModelVersion("tiny", "1.0"))
    monkeypatch.chdir(project.root)
    # The same again, also when it is built again, changes nothing.
    assert main(["archive", "tiny"]) == 0
    first.path.unlink()
    assert build_from_spec(project, spec).sha256 == first.sha256

    handler = project.root / "handlers" / "image_classifier_handler.py"
    handler.write_text(handler.read_text() + "\n# edited\n")
    capsys.readouterr()
    assert main(["archive", "tiny"]) == 2
    error = capsys.readouterr().err
    assert f"tiny:1.0 is registered with SHA-256 {first.sha256[:16]}" in error
    assert "marsmith unregister tiny:1.0\n" in error
    assert digest(first.path) == first.sha256
    assert main(["archive", "tiny", "--version", "1.1"]) == 0

    assert main(["unregister", "tiny:1.0"]) == 0
    assert "no server runs, and the next one leaves it out" in capsys.readouterr().out
    stored = [open_stored(first.path)]
    assert plan_serving(stored, served_file.read(project), {}).archives == ()
    assert main(["archive", "tiny"]) == 0
    # It has other bytes than the one that was unregistered: it is new, and is served.
    stored, state = [open_stored(first.path)], served_file.read(project)
    renewed = _renewed(stored, state)
    assert [archive.version for archive in plan_serving(stored, state, {}, renewed=renewed).archives] == [
        ("tiny", "1.0")
    ]


def test_unregister_without_a_server_says_what_the_next_one_does(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(model_store(project), "1.0")
    write_version(model_store(project), "2.0")
    served(project, V1, V2)
    monkeypatch.setenv("MARSMITH_PROJECT", str(project.root))
    assert main(["unregister", "echo"]) == 2
    assert main(["unregister", "echo:9.0"]) == 1
    assert "served of echo: 1.0, 2.0" in capsys.readouterr().err
    assert main(["unregister", "echo:1.0"]) == 0
    assert capsys.readouterr().out.endswith("the next one leaves it out, and echo:2.0 answers\n")
    assert main(["unregister", "echo"]) == 0
    assert served_file.read(project).models == {}
    assert main(["unregister", "echo:2.0"]) == 1


def test_a_version_that_only_the_journal_knows_is_let_go_with_forget(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_version(model_store(project), "1.0")
    JournalFile.of(project, "echo").write(Journal("echo", (Release("1.0", archive.name, digest(archive), 1),)))
    monkeypatch.setenv("MARSMITH_PROJECT", str(project.root))
    assert main(["unregister", "echo", "--forget"]) == 2
    assert main(["unregister", "echo:1.0"]) == 1
    assert bound_digest(project, V1) == digest(archive)
    assert main(["unregister", "echo:1.0", "--forget"]) == 0
    assert "no rollback chooses it any more" in capsys.readouterr().out
    assert bound_digest(project, V1) is None


def test_a_start_leaves_out_what_has_other_bytes_unless_what_was_served_is_to_be_forgotten(
    project: Project, tmp_path: Path
) -> None:
    store = model_store(project)
    archive = write_version(store, "1.0")
    served(project, V1)
    state, items = served_file.read(project), load_items(store, "all")
    old = digest(archive)
    assert select(items, check=partial(check_stored, project, state)).left_out == ()
    write_version(tmp_path, "1.0", at_request=OTHER).replace(archive)
    [left] = select(items, check=partial(check_stored, project, state)).left_out
    assert old[:16] in left.reason
    assert digest(archive)[:16] in left.reason
    assert "marsmith unregister echo:1.0" in left.tip
    # `marsmith serve --fresh`: but a deploy may still go back to it.
    assert select(items, check=partial(check_stored, project, None)).left_out == ()
    JournalFile.of(project, "echo").write(Journal("echo", (Release("1.0", archive.name, old, 1),)))
    assert len(select(items, check=partial(check_stored, project, None)).left_out) == 1
