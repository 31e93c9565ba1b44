"""``marsmith repack``: an archive of another tool becomes one of ours, and its files stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from marsmith.archive import Archive, write_archive
from marsmith.build.repack import repack
from marsmith.cli import main
from marsmith.errors import ArchiveError, BuildError, VerificationError
from support.archive_inputs import HANDLER, MANIFEST, WEIGHTS, listing, members

ARCHIVER = Path(sys.executable).with_name("torch-model-archiver")
needs_archiver = pytest.mark.skipif(not ARCHIVER.exists(), reason="needs torch-model-archiver")


def stock_archive(folder: Path, archive_format: str = "default") -> Path:
    """Build one with torch-model-archiver, which deletes a folder in the temporary folder, in one of its own."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "model.pt").write_bytes(WEIGHTS)
    (folder / "toy_handler.py").write_bytes(HANDLER)
    command = [str(ARCHIVER), "--model-name", "toy", "--version", "2.0", "--serialized-file", "model.pt"]
    command += ["--handler", "toy_handler.py", "--export-path", "out", "--archive-format", archive_format]
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, "TMPDIR": str(folder / "tmp")})
    return next((folder / "out").iterdir())


@needs_archiver
@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz", "no-archive"])
def test_a_stock_archive_becomes_one_of_ours_with_the_same_files(tmp_path: Path, archive_format: str) -> None:
    old = stock_archive(tmp_path / "stock", archive_format)
    before = listing(old.parent)
    done = repack(old)
    assert done.path == old.parent / "toy-2.0.mar"
    archive = Archive.open(done.path)
    assert archive.read("model.pt") == WEIGHTS
    assert archive.read("toy_handler.py") == HANDLER
    assert {info.method for info in archive.members.values()} == {"stored"}
    assert set(archive.members) - {"MAR-INF/SHA256SUMS"} == set(Archive.open(old).members)
    digests = archive.member_digests()
    digests.pop("MAR-INF/SHA256SUMS")
    assert archive.sums == digests
    assert archive.manifest.marsmith == {"formatVersion": 1}
    after = listing(old.parent)
    after.pop("toy-2.0.mar")
    assert after == before


@needs_archiver
def test_stock_archives_of_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = stock_archive(tmp_path / "one"), stock_archive(tmp_path / "other", "tgz")
    assert repack(one).sha256 == repack(other).sha256


def test_repacking_our_own_archive_changes_nothing(tmp_path: Path) -> None:
    digest = write_archive(replace(MANIFEST, archiver_version=None), members(), tmp_path / "a.mar")
    assert repack(tmp_path / "a.mar", output=tmp_path / "b.mar").sha256 == digest
    assert repack(tmp_path / "a.mar", output=tmp_path / "a.mar", force=True).sha256 == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mar", "b.mar"]


def test_unknown_fields_of_the_manifest_are_kept(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.mar", "w") as archive:
        archive.writestr(
            "MAR-INF/MANIFEST.json",
            '{"runtime": "python", "by": "them", "model": {"modelName": "a", "modelVersion": "1", "handler": "h:f",'
            ' "envelope": "json"}}',
        )
        archive.writestr("h.py", HANDLER)
    manifest = Archive.open(repack(tmp_path / "old.mar").path).manifest
    assert manifest.extra == {"by": "them"}
    assert manifest.model_extra == {"envelope": "json"}
    assert manifest.handler == "h:f"


def test_an_environment_record_can_be_added(tmp_path: Path) -> None:
    write_archive(MANIFEST, members(), tmp_path / "old.mar")
    (tmp_path / "environment.txt").write_text("python==3.11.7\n")
    done = repack(tmp_path / "old.mar", environment=tmp_path / "environment.txt")
    assert Archive.open(done.path).read("MAR-INF/environment.txt") == b"python==3.11.7\n"


def test_an_archive_whose_digests_do_not_hold_is_refused(tmp_path: Path) -> None:
    write_archive(MANIFEST, members(), tmp_path / "toy", archive_format="no-archive")
    (tmp_path / "toy" / "model.pt").write_bytes(b"other weights")
    with pytest.raises(VerificationError, match=r"model\.pt"):
        repack(tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_damaged_or_hostile_archive_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "cut.mar").write_bytes(b"PK\x03\x04")
    with zipfile.ZipFile(tmp_path / "evil.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
        archive.writestr("../evil.py", "")
    before = listing(tmp_path)
    for name in ("cut.mar", "evil.mar", "missing.mar"):
        with pytest.raises(ArchiveError):
            repack(tmp_path / name, output=tmp_path / "new.mar")
    assert listing(tmp_path) == before


def test_an_existing_archive_is_kept_without_force(tmp_path: Path) -> None:
    write_archive(MANIFEST, members(), tmp_path / "toy-1.0.mar")
    before = listing(tmp_path)
    with pytest.raises(BuildError, match="already exists"):
        repack(tmp_path / "toy-1.0.mar")
    assert listing(tmp_path) == before
    repack(tmp_path / "toy-1.0.mar", force=True)


def test_the_command_prints_digest_and_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(MANIFEST, members(), tmp_path / "old.mar")
    assert main(["repack", str(tmp_path / "old.mar"), "--output", str(tmp_path / "new.mar")]) == 0
    digest, path = capsys.readouterr().out.split()
    assert path == str(tmp_path / "new.mar")
    assert digest == Archive.open(tmp_path / "new.mar").digest()
