"""Every verb that runs, serves or ships an archive admits it first; here those that need no server."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from marsmith.archive import Archive, Member, write_archive
from marsmith.archive import admit as admission
from marsmith.archive.admit import Policy, admit
from marsmith.archive.signature import sign, signature_path
from marsmith.archive.verify import Verification, verify
from marsmith.build.repack import repack
from marsmith.cli import VERBS, main
from marsmith.errors import ArchiveError, HandlerError, UsageError, VerificationError
from marsmith.project import Project
from marsmith.runtime.runner import Request, Runner
from marsmith.runtime.worker import Process, start_python
from support.pictures import picture
from support.projects import REPOSITORY
from support.signing_keys import write_keys
from support.tampered_archives import (
    SHIPPED,
    TAMPERED,
    become_foreign,
    change_weights,
    entries_of,
    plant_bytecode,
    remove_key,
    rewrite,
    shipped_archive,
)

SPEC = f"""\
name: tiny
version: "1.0"
export: {{recipe: export/tiny.py}}
handler: {{entry_point: handlers/{SHIPPED}}}
"""
# What a verb is called with, beside the archive, to run or ship it without a server.
HERE = {
    "run": ["{archive}", "red.png"],
    "batch": ["{archive}", "red.png", "--to", "answers"],
    "host": ["{archive}", "--state", "state", "--port", "0"],
    "check": ["{archive}"],
    "watch": ["tiny", "red.png", "--once"],
    "tune": ["{archive}", "--p99-ms", "50", "--input", "red.png", "--minutes", "0.1"],
    "optimize": ["{archive}", "--examples", "photos"],
    "repack": ["{archive}", "--output", "new.mar"],
    "sign": ["{archive}", "--key", "private.pem"],
    "verify": ["{archive}", "--replay"],
}
# The way in for archives of other tools, and the way to a signature: they ask for what an archive says itself, no more.
POLICED = [verb for verb in HERE if verb not in {"repack", "sign"}]
# Proved with a running server, in tests/live/test_admit_live.py.
LIVE = {"serve", "register", "deploy", "rollback"}
NEED_NOT = {
    "export": "makes a serialized file of weights",
    "archive": "builds from a spec; what it built before is admitted before it is taken for current",
    "new": "writes a project around weights, without running an archive",
    "pack": "builds from loose files",
    "inspect": "shows what an archive says, without running it",
    "lint": "reads configs, without running an archive",
    "config": "reads configs, without running an archive",
    "doctor": "looks at the machine",
    "monitor": "reads specs and settings, without running an archive",
    "kubernetes": "reads specs and settings, without running an archive",
    "status": "asks the server",
    "stop": "ends the server",
    "predict": "asks the server",
    "models": "asks the server",
    "scale": "starts more workers of what was admitted and unpacked before; each proves the folder again",
    "set-default": "chooses among versions that were admitted",
    "unregister": "takes a version off",
    "bench": "asks the server",
    "log": "reads logs; that its hook runs from admitted archives only is shown in unit/predictions/test_log_verb.py",
    "drift": "reads logs, and the statistics in an archive",
    "label": "reads logs, and where archives say that they lie",
    "rollout": "shows and orders what a deploy has begun",
    "token": "reads the server's key file",
    "certificate": "makes a key",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped_archive(tmp_path_factory.mktemp("built") / "tiny-1.0.mar")


@pytest.fixture
def project(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the archive in its store, a spec of that name, and what the verbs need."""
    for name in ("config/models", "export", "model_store", "photos"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copytree(REPOSITORY / "handlers", tmp_path / "handlers", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "config" / "models" / "tiny.yaml").write_text(SPEC)
    (tmp_path / "config.properties").write_bytes((REPOSITORY / "config.properties").read_bytes())
    shutil.copy(built, tmp_path / "model_store")
    (tmp_path / "red.png").write_bytes(picture(255, 0, 0))
    write_keys(tmp_path, "private")
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path.resolve())


def archive_of(project: Project) -> Path:
    return project.model_store / "tiny-1.0.mar"


def call(verb: str, archive: Path) -> int:
    return main([verb, *(argument.format(archive=archive) for argument in HERE[verb])])


def test_every_verb_is_known_here_either_to_admit_archives_or_to_need_not() -> None:
    assert {*HERE, *LIVE, *NEED_NOT} == set(VERBS)
    assert len(HERE) + len(LIVE) + len(NEED_NOT) == len(VERBS)


@pytest.mark.parametrize("tampered", TAMPERED)
@pytest.mark.parametrize("verb", HERE)
def test_a_verb_refuses_a_tampered_archive_and_names_what_is_wrong_and_runs_nothing_of_it(
    verb: str, tampered: str, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    archive, marker = archive_of(project), project.root / "marker"
    tamper, named = TAMPERED[tampered]
    tamper(archive, marker)
    before = sorted(project.root.rglob("*"))
    assert call(verb, archive) == 1
    said = capfd.readouterr()
    assert named in said.out + said.err
    assert archive.name in said.out + said.err
    assert "Traceback" not in said.err
    assert not marker.exists()
    assert sorted(project.root.rglob("*")) == before, "nothing is half-written"


@pytest.mark.parametrize("verb", POLICED)
def test_archives_of_other_tools_are_refused_where_only_ours_are_admitted(
    verb: str, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    become_foreign(archive_of(project), project.root)
    project.settings_file.write_text("archives: ours\n")
    assert call(verb, archive_of(project)) == 1
    assert "another tool built it, and config/marsmith.yaml has archives: ours" in "".join(capfd.readouterr())


@pytest.mark.parametrize("verb", POLICED)
def test_an_unsigned_archive_is_refused_where_a_signature_is_required(
    verb: str, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    project.settings_file.write_text("signatures: required\ntrusted_keys: [private.pub.pem]\n")
    assert call(verb, archive_of(project)) == 1
    assert "tiny-1.0.mar.sig: no such signature" in "".join(capfd.readouterr())


@pytest.mark.parametrize("verb", POLICED)
def test_settings_that_cannot_be_read_admit_nothing(
    verb: str, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    project.settings_file.write_text("archive: ours\n")
    assert call(verb, archive_of(project)) == 1
    assert "unknown key 'archive'; did you mean 'archives'?" in capfd.readouterr().err


def test_a_signed_archive_runs_where_a_signature_is_required(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    project.settings_file.write_text("archives: ours\nsignatures: required\ntrusted_keys: [private.pub.pem]\n")
    assert call("sign", archive_of(project)) == 0
    assert call("run", archive_of(project)) == 0
    assert '"red"' in capfd.readouterr().out


def test_an_archive_of_another_tool_is_admitted_with_one_warning(built: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    become_foreign(archive, tmp_path)
    [warning] = admit(archive, Policy()).warnings
    assert warning.startswith("tiny-1.0.mar: made by another tool: it has no digests")
    assert admit(built, Policy()).warnings == ()


def test_a_version_that_is_bound_to_its_bytes_becomes_no_foreign_one(built: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    bound = Archive.open(archive).digest()
    assert admit(archive, Policy(), expected_digest=bound).archive.path == archive
    become_foreign(archive, tmp_path)
    assert not Archive.open(archive).is_ours
    found = Archive.open(archive).digest()
    with pytest.raises(VerificationError, match=f"tiny:1.0 is bound to the bytes with SHA-256 {bound}, .* {found}"):
        admit(archive, Policy(), expected_digest=bound)


def test_all_reasons_come_at_once(built: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    change_weights(archive, tmp_path)
    remove_key(archive, tmp_path)
    _, public = write_keys(tmp_path, "team")
    with pytest.raises(VerificationError) as caught:
        admit(archive, Policy(signatures="required", trusted_keys=(public,)), expected_digest="0" * 64)
    for part in ("structure: ", "digests: changed: member 'model.pt'", "digest: tiny:1.0", "signature: "):
        assert part in caught.value.message
    assert caught.value.tip


@pytest.mark.parametrize("signatures", ["required", "optional"])
def test_a_signature_that_is_there_must_be_by_a_trusted_key(built: Path, tmp_path: Path, signatures: str) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    ours, our_public = write_keys(tmp_path, "ours")
    theirs, their_public = write_keys(tmp_path, "theirs")
    policy = Policy(signatures=signatures, trusted_keys=(our_public, their_public))  # type: ignore[arg-type]
    for key in (ours, theirs):
        sign(archive, key)
        assert admit(archive, policy).archive.path == archive
    strangers, _ = write_keys(tmp_path, "strangers")
    sign(archive, strangers)
    with pytest.raises(VerificationError, match=r"signature: .* signed with another key"):
        admit(archive, policy)
    assert admit(archive, Policy()).archive.path == archive, "nobody can prove it where no key is trusted"


def test_a_signature_of_other_bytes_is_refused(built: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    private, public = write_keys(tmp_path, "team")
    sign(archive, private)
    shutil.copy(shipped_archive(tmp_path / "other.mar", version="1.1"), archive)
    with pytest.raises(VerificationError, match=r"signature: .*not the file that was signed"):
        admit(archive, Policy(trusted_keys=(public,)))


def test_a_folder_cannot_be_signed(built: Path, tmp_path: Path) -> None:
    folder = Archive.open(built).extract(tmp_path / "tiny")
    assert admit(folder, Policy()).archive.kind == "folder"
    _, public = write_keys(tmp_path, "team")
    with pytest.raises(VerificationError, match="a folder cannot be signed"):
        admit(folder, Policy(signatures="required", trusted_keys=(public,)))
    (folder / "model.pt").write_bytes(b"x")
    with pytest.raises(VerificationError, match=r"changed: member 'model\.pt'"):
        admit(folder, Policy())


def test_a_file_is_read_once_in_a_process_and_again_when_it_was_written(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    reads = []

    def verified(opened: Archive, *, environment: bool) -> Verification:
        reads.append(opened)
        return verify(opened, environment=environment)

    monkeypatch.setattr(admission, "verify", verified)
    for _ in range(3):
        admit(archive, Policy())
    assert len(reads) == 1
    status = archive.stat()
    change_weights(archive, tmp_path)
    # Whoever tampers sets the times back; the time of change of the inode cannot be set.
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(VerificationError):
        admit(archive, Policy())


@pytest.mark.parametrize(
    "name", ["core", "core.py", "core.json", "core/x.py", "MAR-INF.txt", "a.mar", "model-config.yml"]
)
def test_no_name_of_a_member_is_special(tmp_path: Path, name: str) -> None:
    archive = shipped_archive(tmp_path / "tiny.mar")

    entries = entries_of(archive)
    members = [Member(each, content) for each, content in entries.items() if not each.startswith("MAR-INF/")]
    write_archive(Archive.open(archive).manifest, [*members, Member(name, b"x = 1\n")], archive, force=True)
    assert admit(archive, Policy()).warnings == ()


def test_what_is_gone_or_no_archive_is_refused(tmp_path: Path, project: Project) -> None:
    with pytest.raises(ArchiveError, match="no such file"):
        admit(tmp_path / "gone.mar", Policy())
    assert main(["run", "gone.mar", "red.png"]) == UsageError.exit_code
    assert project


def test_a_signature_is_replaced_and_removed_with_its_archive(built: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    private, _ = write_keys(tmp_path, "team")
    sign(archive, private)
    entries = entries_of(archive)
    # The same bytes again: the signature still is of them.
    assert not repack(archive, output=archive, force=True, environment=None).needs_signature
    assert signature_path(archive).exists()
    environment = tmp_path / "environment.txt"
    environment.write_text("# other\n")
    assert repack(archive, output=archive, force=True, environment=environment).needs_signature
    assert not signature_path(archive).exists()
    assert entries_of(archive).keys() == entries.keys()


def test_a_signature_of_another_kind_is_nobodys_business(built: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(built, tmp_path))
    signature_path(archive).write_bytes(b"\x89\x01 not ours")
    rewrite(archive, entries_of(archive))
    repack(archive, output=archive, force=True)
    assert signature_path(archive).exists()


def test_planted_bytecode_would_run(built: Path, tmp_path: Path) -> None:
    """The attack of these tests is one: Python does run the planted file."""
    archive, marker = Path(shutil.copy(built, tmp_path)), tmp_path / "marker"
    plant_bytecode(archive, marker)
    shutil.unpack_archive(archive, tmp_path / "model", "zip")
    subprocess.run([sys.executable, "-c", f"import {Path(SHIPPED).stem}"], cwd=tmp_path / "model", check=True)
    assert marker.exists()


def test_workers_that_write_bytecode_beside_the_members_load_one_after_the_other_and_planted_bytecode_does_not(
    built: Path, tmp_path: Path
) -> None:
    """As `torchserve --start` alone starts them: only marsmith tells Python to write none."""
    folder = Archive.open(built).extract(tmp_path / "model")

    def launch(command: Sequence[str], place: Path, environment: Mapping[str, str]) -> Process:
        return start_python(command, place, {**environment, "PYTHONDONTWRITEBYTECODE": ""})

    for _ in range(2):
        with Runner(folder, launch=launch) as runner:
            [reply] = runner.run([Request(picture(255, 0, 0), "image/png")])
            assert reply.status == 200
    [bytecode] = folder.rglob("labels.cpython-*.pyc")
    source = tmp_path / "labels.py"
    source.write_text(f"{(folder / 'marsmith_handler/labels.py').read_text()}\nCLASSES = 3\n")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), str(bytecode), "labels.py", doraise=True, invalidation_mode=unchecked)
    with pytest.raises(HandlerError, match=rf"__pycache__/{bytecode.name} was added"), Runner(folder, launch=launch):
        pass
