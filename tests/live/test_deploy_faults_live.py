"""Deploys that are killed, files that are replaced, and an operator who acts in between, on a real server.

The project's model store lies elsewhere, in a folder whose name is not plain.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marsmith.archive import Archive
from marsmith.cli import main
from marsmith.client import Client
from marsmith.config.server_config import served_store
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.versions import Event, Options, Outcome, deploy, plan_deploy, rollback
from marsmith.errors import OtherBytesError, ServerError, UsageError
from marsmith.names import ModelVersion
from marsmith.project import Project
from marsmith.server import state as server_state
from marsmith.state.journal import Journal, JournalFile
from marsmith.state.version_bytes import binding, bound_digest
from support.deploy_fixtures import MODEL, WRONG, write_version
from support.live_server import make_project, running, until
from support.long_tests import mostly_long

STORE = "die großen Archive"
QUICK = Options(keep=1, watch_s=0.1, limits=RolloutLimits(max_latency_ratio=1000))


@dataclass
class Arena:
    """A running server whose default version is always the last good one that was deployed."""

    project: Project
    folder: Path
    _count: int = 1

    @property
    def store(self) -> Path:
        return served_store(self.project)

    def build(self, **how: Any) -> Path:
        """Write the archive of a version that there has not been, outside the model store and under another name."""
        self._count += 1
        folder = self.folder / str(self._count)
        folder.mkdir()
        return write_version(folder, f"{self._count}.0", **how).rename(folder / "built.mar")

    def deploy(self, archive: Path | str, options: Options = QUICK) -> Outcome:
        return deploy(self.project, str(archive), options)

    def good(self, options: Options = QUICK) -> str:
        return self.deploy(self.build(), options).version

    def journal(self) -> Journal:
        return JournalFile.of(self.project, MODEL).read()

    def versions(self) -> dict[str, tuple[bool, int]]:
        """Return the registered versions: whether each is the default, and its least workers."""
        with Client.for_project(self.project) as client:
            return {s.model_version: (s.default, s.min_workers) for s in client.describe(MODEL)}

    def default(self) -> str:
        return next(version for version, (default, _) in self.versions().items() if default)

    def stored(self) -> set[str]:
        return {path.name for path in self.store.iterdir()}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("deploy")
    (folder / STORE).mkdir()
    first = write_version(folder / STORE, "1.0")
    project = make_project(folder / "project", model_store=f"../{STORE}", load_models=first.name)
    with running(project):
        yield Arena(project, folder)


@pytest.fixture(autouse=True)
def here(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARSMITH_PROJECT", str(arena.project.root))


CHILD = """
import os, signal, sys
from pathlib import Path
from marsmith.archive.staging import Staged
from marsmith.deploy.versions import Options, deploy
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.project import Project

root, archive, keep, moment = sys.argv[1:]

def die(event):
    if f"{event.step.action} {event.state}" == moment:
        os.kill(os.getpid(), signal.SIGKILL)

publish = Staged.publish

def publish_and_die(staged, **how):
    if moment == "copied":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(staged, **how)
    if moment == "published":
        os.kill(os.getpid(), signal.SIGKILL)

Staged.publish = publish_and_die
options = Options(keep=int(keep), watch_s=0.1, limits=RolloutLimits(max_latency_ratio=1000))
deploy(Project(Path(root)), archive, options, on_event=die)
"""


def child(arena: Arena, archive: Path | str, moment: str, keep: int = 1) -> list[str]:
    return [sys.executable, "-c", CHILD, str(arena.project.root), str(archive), str(keep), moment]


def deploy_and_die(arena: Arena, archive: Path | str, moment: str, keep: int = 1) -> None:
    """Deploy in another process, which is killed right before ("begin") or after ("done") a step."""
    done = subprocess.run(child(arena, archive, moment, keep), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert arena.journal().change


# Every step of the journal, and what the archive that was named has come to by then.
MOMENTS = [
    *(("store begin", "there"), ("copied", "gone"), ("published", "gone"), ("store done", "there")),
    *(("register begin", "gone"), ("register done", "gone"), ("ready done", "there"), ("probe done", "gone")),
    *(("switch begin", "there"), ("switch done", "gone"), ("watch done", "there"), ("accept begin", "gone")),
    *(("accept done", "gone"), ("drain done", "there")),
]
KEPT = [("copied", "gone"), ("register done", "gone"), ("switch done", "gone")]


@pytest.mark.parametrize(("moment", "source"), mostly_long("kills", MOMENTS, KEPT))
def test_the_same_command_after_a_kill_at_any_step_brings_the_version_into_service(
    arena: Arena, moment: str, source: str
) -> None:
    archive = arena.build()
    version, content = Archive.open(archive).manifest.model_version, archive.read_bytes()
    deploy_and_die(arena, archive, moment)
    if source == "gone":
        archive.unlink()
    if (moment, source) == ("copied", "gone"):
        # Nothing is left of it anywhere.
        with pytest.raises(UsageError, match="no archive"):
            arena.deploy(archive)
    else:
        planned = plan_deploy(arena.project, str(archive), QUICK)
        assert planned.interrupted
        assert planned.version == version
        assert arena.deploy(archive).version == version
        assert arena.default() == version
        assert (arena.store / f"{MODEL}-{version}.mar").read_bytes() == content
    assert arena.journal().change is None
    assert not [name for name in arena.stored() if name.startswith(".")]


def test_a_kill_while_the_server_loads_the_version_is_made_good_by_the_same_command(arena: Arena) -> None:
    loading, gate = arena.folder / "loading", arena.folder / "loads"
    waits = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    archive = arena.build(at_load=f"open({str(loading)!r}, 'w').close()\n        {waits}")
    version = Archive.open(archive).manifest.model_version
    with subprocess.Popen(child(arena, archive, "never"), stderr=subprocess.DEVNULL) as process:
        # The worker says it itself: while it registers something, TorchServe may answer nothing else.
        until(loading.exists)
        process.kill()
    archive.unlink()
    gate.touch()
    assert arena.deploy(archive).version == version
    assert arena.default() == version


def test_a_failed_deploy_leaves_the_store_as_it_was_but_for_the_only_copy(arena: Arena) -> None:
    before, default = arena.stored(), arena.default()
    archive = arena.build(at_request=WRONG)
    with pytest.raises(ServerError, match="everything is as it was"):
        arena.deploy(archive)
    assert arena.stored() == before

    def lose(event: Event) -> None:
        if (event.step.action, event.state) == ("probe", "begin"):
            archive.unlink()

    events: list[Event] = []
    with pytest.raises(ServerError, match="everything is as it was"):
        deploy(arena.project, str(archive), QUICK, on_event=lambda event: (lose(event), events.append(event))[1])
    [left] = arena.stored() - before
    assert any("which it was copied from, is gone" in event.step.detail for event in events)
    (arena.store / left).unlink()
    assert arena.default() == default


def test_a_file_that_somebody_puts_into_the_store_meanwhile_is_not_touched(arena: Arena) -> None:
    archive = arena.build()
    name = f"{MODEL}-{Archive.open(archive).manifest.model_version}.mar"

    def put(event: Event) -> None:
        if (event.step.action, event.state) == ("store", "begin"):
            (arena.store / name).write_text("theirs")

    with pytest.raises(ServerError, match="is there already, with other bytes"):
        deploy(arena.project, str(archive), QUICK, on_event=put)
    assert (arena.store / name).read_text() == "theirs"
    (arena.store / name).unlink()
    # After a kill, too: the next deploy undoes, and leaves what is not the copy that was made.
    deploy_and_die(arena, archive, "register begin")
    Path(shutil.copy(archive, arena.folder / "theirs")).rename(arena.store / name)
    inode = (arena.store / name).stat().st_ino
    arena.good()
    assert (arena.store / name).stat().st_ino == inode
    (arena.store / name).unlink()


def other_bytes(path: Path) -> str:
    """Replace an archive by another build of its version; return the digest that it had."""
    version, digest = Archive.open(path).manifest.model_version, Archive.open(path).digest()
    scratch = path.parent / ".scratch"
    scratch.mkdir()
    write_version(scratch, version, at_request="time.sleep(0)").replace(path)
    scratch.rmdir()
    return digest


def test_a_default_version_whose_file_was_replaced_is_not_called_deployed(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    version = arena.good()
    stored = arena.store / f"{MODEL}-{version}.mar"
    kept = stored.read_bytes()
    old = other_bytes(stored)
    assert main(["deploy", stored.name]) == 2
    assert main(["deploy", stored.name, "--plan"]) == 2
    error = capsys.readouterr().err
    for digest in (old, Archive.open(stored).digest()):
        assert error.count(digest[:16]) == 2
    assert f"marsmith unregister {MODEL}:{version} --forget" in error
    assert bound_digest(arena.project, ModelVersion(MODEL, version)) == old
    stored.write_bytes(kept)
    assert arena.deploy(stored.name).result == "unchanged"


def test_a_version_whose_file_was_replaced_is_neither_deployed_nor_rolled_back_to_nor_registered(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    first = arena.good()
    second = arena.good()
    stored = arena.store / f"{MODEL}-{first}.mar"
    kept, before = stored.read_bytes(), arena.journal()
    other_bytes(stored)
    for refused in (lambda: arena.deploy(stored.name), lambda: rollback(arena.project, MODEL)):
        with pytest.raises(OtherBytesError, match=f"{MODEL}:{first} is (registered|journalled) with SHA-256"):
            refused()
    with Client.for_project(arena.project) as client:
        client.unregister(MODEL, first)
    server_state.record(arena.project)
    # It is journalled still.
    with pytest.raises(OtherBytesError, match=f"{MODEL}:{first} is journalled"):
        rollback(arena.project, MODEL)
    assert main(["register", stored.name]) == 2
    assert f"{MODEL}:{first} is journalled" in capsys.readouterr().err
    assert (arena.default(), arena.journal()) == (second, before)
    # The ways out: the right file, or to let go of the version.
    replaced = stored.read_bytes()
    stored.write_bytes(kept)
    assert rollback(arena.project, MODEL, keep=1).version == first
    stored.write_bytes(replaced)
    arena.deploy(arena.store / f"{MODEL}-{second}.mar")
    assert main(["unregister", f"{MODEL}:{first}", "--forget"]) == 0
    assert main(["register", stored.name]) == 0
    assert bound_digest(arena.project, ModelVersion(MODEL, first)) == Archive.open(stored).digest()
    assert main(["unregister", f"{MODEL}:{first}"]) == 0


def test_a_version_that_was_registered_by_hand_is_bound_as_well(arena: Arena) -> None:
    archive = arena.build()
    version = ModelVersion(MODEL, Archive.open(archive).manifest.model_version)
    shutil.copy(archive, arena.store / "by-hand.mar")
    with Client.for_project(arena.project) as client:
        client.register("by-hand.mar", initial_workers=1)
    until(lambda: server_state.record(arena.project) and binding(arena.project, version) is not None)
    bound = binding(arena.project, version)
    assert bound
    assert (bound.digest, bound.ours, bound.registered) == (Archive.open(archive).digest(), False, True)
    other_bytes(arena.store / "by-hand.mar")
    with pytest.raises(OtherBytesError):
        arena.deploy("by-hand.mar")
    with Client.for_project(arena.project) as client:
        client.unregister(*version)
    (arena.store / "by-hand.mar").unlink()


def heard(arena: Arena, archive: Path | str) -> list[str]:
    """Deploy what is the default anyway, so that only the recovery is left to do; return what it says."""
    events: list[Event] = []
    deploy(arena.project, str(archive), QUICK, on_event=events.append)
    assert arena.journal().change is None
    return [f"{event.step.action}: {event.step.detail}" for event in events if event.state == "done"]


def test_recovery_leaves_what_an_operator_has_chosen_since(arena: Arena) -> None:
    old = arena.good()
    kept = arena.store / f"{MODEL}-{old}.mar"
    with Client.for_project(arena.project) as client:
        # Accepted, and then the operator went back by hand.
        archive = arena.build()
        new = Archive.open(archive).manifest.model_version
        deploy_and_die(arena, archive, "drain begin", keep=0)
        client.set_default(MODEL, old)
        [said] = heard(arena, kept)
        assert f"{old} has been made the default version since: this is not undone" in said
        assert arena.versions()[old] == (True, 1)
        assert new in arena.versions()
        client.unregister(MODEL, new)

        # Not yet switched, and then the operator switched by hand.
        archive = arena.build()
        new = Archive.open(archive).manifest.model_version
        deploy_and_die(arena, archive, "probe done")
        client.set_default(MODEL, new)
        [said] = heard(arena, arena.store / f"{MODEL}-{new}.mar")
        assert f"{new} has been made the default version since" in said
        assert arena.default() == new

        # Not yet accepted, and the way back has been taken away.
        old, archive = new, arena.build()
        new = Archive.open(archive).manifest.model_version
        deploy_and_die(arena, archive, "watch done")
        client.unregister(MODEL, old)
        [said] = heard(arena, arena.store / f"{MODEL}-{new}.mar")
        assert f"{old} has been unregistered since" in said
        assert arena.default() == new
        assert old not in arena.versions()

        # It was undone, but the operator has given it workers.
        present, archive = new, arena.build()
        new = Archive.open(archive).manifest.model_version
        deploy_and_die(arena, archive, "probe done")
        client.scale(MODEL, version=new, min_workers=2)
        [said] = heard(arena, arena.store / f"{MODEL}-{present}.mar")
        assert f"{new} has been given 2 workers since" in said
        assert arena.versions()[new] == (False, 2)
        client.unregister(MODEL, new)


def test_more_workers_for_the_default_version_are_given_and_fewer_are_refused_with_the_way(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    version = arena.good()
    name = f"{MODEL}-{version}.mar"
    assert main(["deploy", name, "--plan", "--workers", "2"]) == 0
    assert "give it 2 workers instead of 1" in capsys.readouterr().out
    assert arena.versions()[version] == (True, 1)
    assert main(["deploy", name, "--workers", "2", "--watch-s", "5", "--keep", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{MODEL} is answered by version {version} already, with more workers now\n"
    assert "--watch-s, --keep: no effect" in printed.err
    assert arena.versions()[version] == (True, 2)
    assert arena.journal().releases[-1].workers == 2
    # Without the option it keeps what it has, whoever gave it.
    with Client.for_project(arena.project) as client:
        client.scale(MODEL, version=version, min_workers=3)
    assert main(["deploy", name]) == 0
    assert arena.versions()[version] == (True, 3)
    assert main(["deploy", name, "--workers", "1"]) == 2
    assert f"marsmith scale {MODEL}:{version} --workers 1 --drain 60" in capsys.readouterr().err
    with Client.for_project(arena.project) as client:
        client.scale(MODEL, version=version, min_workers=1)
    assert main(["rollback", MODEL, "--to", version, "--keep", "3"]) == 0
    assert "--keep: no effect" in capsys.readouterr().err
