"""Writing archives: the same bytes every time, read by every tool, and never half of one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from marsmith.archive import Archive, Member
from marsmith.archive.copier import Copier
from marsmith.archive.manifest import parse_manifest
from marsmith.archive.sums import parse_sums
from marsmith.archive.write import ArchiveFormat, write_archive
from marsmith.archive.zip_writer import ZipWriter
from marsmith.errors import BuildError
from support.archive_inputs import (
    BUILD,
    CONTENTS,
    HANDLER,
    MANIFEST,
    SOURCE_FOLDER,
    WEIGHTS,
    listing,
    members,
    write_files,
)
from support.long_tests import mostly_long
from support.pythons import pythons

FORMATS: tuple[tuple[ArchiveFormat, str], ...] = (
    ("zip-store", "toy.mar"),
    ("default", "toy.mar"),
    ("tgz", "toy.tar.gz"),
    ("no-archive", "toy"),
)
# The digest of the archive of archive_inputs. If it changes, archives built before are no longer what a build gives.
GOLDEN = "f21f6a640d2f64903959ce9f0d3032855e54e1a832186ff9c9d6c0ea95468701"


def build_elsewhere(python: str, arguments: list[str], **options: object) -> str:
    """Build in a process of its own and return the digest that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER), **options.pop("env", {})}  # type: ignore[dict-item]
    command = [python, "-c", BUILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout.strip())


def stream_entries(data: bytes) -> list[tuple[str, int, int, bytes]]:
    """Read a zip as TorchServe does, from its start and by its local headers alone: name, flags, method, content."""
    entries, position = [], 0
    while data[position : position + 4] == b"PK\x03\x04":
        fields = struct.unpack_from("<4s5H3I2H", data, position)
        flags, method, packed, name_size, extra_size = fields[2], fields[3], fields[7], fields[9], fields[10]
        start = position + 30 + name_size + extra_size
        name = data[position + 30 : position + 30 + name_size].decode()
        entries.append((name, flags, method, data[start : start + packed]))
        position = start + packed
    return entries


# --- what it looks like


def test_every_member_is_stored_sorted_and_dated_alike(tmp_path: Path) -> None:
    write_archive(MANIFEST, members(), tmp_path / "toy.mar")
    with zipfile.ZipFile(tmp_path / "toy.mar") as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert names == ["MAR-INF/MANIFEST.json", *sorted(CONTENTS), "MAR-INF/SHA256SUMS"]
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}


def test_local_headers_alone_tell_everything(tmp_path: Path) -> None:
    write_archive(MANIFEST, members(), tmp_path / "toy.mar")
    entries = stream_entries((tmp_path / "toy.mar").read_bytes())
    assert {name: content for name, _, _, content in entries if name in CONTENTS} == CONTENTS
    assert all(not flags & 0x8 for _, flags, _, _ in entries)


def test_the_returned_digest_is_that_of_the_file(tmp_path: Path) -> None:
    digest = write_archive(MANIFEST, members(), tmp_path / "toy.mar")
    assert digest == hashlib.sha256((tmp_path / "toy.mar").read_bytes()).hexdigest()


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_each_format_holds_the_same_and_its_reader_agrees(
    tmp_path: Path, archive_format: ArchiveFormat, name: str
) -> None:
    digest = write_archive(MANIFEST, members(), tmp_path / name, archive_format=archive_format)
    archive = Archive.open(tmp_path / name)
    assert archive.digest() == digest
    found = {member: archive.read(member) for member in archive.members}
    sums = parse_sums(found.pop("MAR-INF/SHA256SUMS").decode())
    assert sums == {member: hashlib.sha256(content).hexdigest() for member, content in found.items()}
    manifest = parse_manifest(found.pop("MAR-INF/MANIFEST.json").decode())
    assert manifest == replace(MANIFEST, created_on="01/01/1980 00:00:00", marsmith={"formatVersion": 1})
    assert found == CONTENTS
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
def test_sha256sum_accepts_an_unzipped_archive_and_refuses_a_changed_one(tmp_path: Path) -> None:
    write_archive(MANIFEST, members(), tmp_path / "toy.mar")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(["unzip", "-q", "toy.mar", "-d", "out"], cwd=tmp_path, check=True, env=environment)
    check = ["sha256sum", "--check", "--strict", "--quiet", "MAR-INF/SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path / "out", check=True)
    assert len(listing(tmp_path / "out")) == len(CONTENTS) + 2
    (tmp_path / "out" / "model.pt").write_bytes(WEIGHTS[:-1] + b"?")
    assert subprocess.run(check, cwd=tmp_path / "out", check=False, capture_output=True).returncode == 1


def test_default_deflates_what_gets_smaller_and_never_the_weights(tmp_path: Path) -> None:
    contents = {
        **CONTENTS,
        "model.pt": bytes(10_000),
        "other.safetensors": bytes(10_000),
        "noise.txt": random.Random(0).randbytes(999),
    }
    write_archive(MANIFEST, members(contents), tmp_path / "toy.mar", archive_format="default")
    with zipfile.ZipFile(tmp_path / "toy.mar") as archive:
        deflated = {entry.filename for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_DEFLATED}
        assert {name: archive.read(name) for name in contents} == contents
    assert {"index_to_name.json", "toy_handler.py", "vocab/caf\u00e9.txt"} <= deflated
    assert not deflated & {"model.pt", "other.safetensors", "noise.txt", "empty.txt"}


def test_a_tgz_has_one_top_folder_and_does_not_deflate_the_weights(tmp_path: Path) -> None:
    contents = {**CONTENTS, "model.pt": bytes(300_000), "text.txt": bytes(300_000), "n" * 150: b"long"}
    write_archive(MANIFEST, members(contents), tmp_path / "toy.tar.gz", archive_format="tgz")
    with tarfile.open(tmp_path / "toy.tar.gz") as archive:
        assert {entry.name.partition("/")[0] for entry in archive} == {"toy"}
        assert {(entry.mode, entry.uid, entry.mtime, entry.type) for entry in archive} == {
            (0o644, 0, 315_532_800, tarfile.REGTYPE)
        }
        assert all(archive.extractfile(f"toy/{name}").read() == content for name, content in contents.items())  # type: ignore[union-attr]
    assert 300_000 < (tmp_path / "toy.tar.gz").stat().st_size < 400_000
    subprocess.run(["gzip", "--test", str(tmp_path / "toy.tar.gz")], check=True)


def test_a_folder_has_fixed_modes_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        write_archive(MANIFEST, members(), tmp_path / "toy", archive_format="no-archive")
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "toy").rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert stat.S_IMODE((tmp_path / "toy" / "vocab").stat().st_mode) == 0o755


def test_large_members_and_many_members_are_marked_as_zip64(tmp_path: Path) -> None:
    """The limits of 4 GiB lowered to 1000 bytes, so that every kind of zip64 record appears."""
    path = tmp_path / "wide.zip"
    contents = {"small": b"x" * 999, "large": WEIGHTS, "after": b"y", "exact": b"z" * 1000}
    with path.open("w+b") as file, Copier() as copier:
        writer = ZipWriter(file, copier, zip64_from=1000)
        for name, content in contents.items():
            writer.add(name, BytesIO(content), len(content))
        writer.close()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents
        assert [entry.extract_version for entry in archive.infolist()] == [20, 45, 45, 45]
    subprocess.run(["unzip", "-tq", str(path)], check=True, stdout=subprocess.DEVNULL)


# --- the same bytes


def test_the_bytes_are_those_of_earlier_releases(tmp_path: Path) -> None:
    assert write_archive(MANIFEST, members(), tmp_path / "toy.mar") == GOLDEN


def test_umask_time_zone_locale_folder_file_dates_and_order_do_not_matter(tmp_path: Path) -> None:
    write_files(tmp_path / "one")
    write_files(tmp_path / "two" / "deeper", dict(reversed(CONTENTS.items())))
    for path in (tmp_path / "two").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = build_elsewhere(
        sys.executable,
        ["one", "a/toy.mar", "zip-store"],
        cwd=tmp_path,
        umask=0o022,
        env={"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1", "PYTHONUTF8": "1"},
    )
    second = build_elsewhere(
        sys.executable,
        [str(tmp_path / "two" / "deeper"), str(tmp_path / "b" / "toy.mar"), "zip-store"],
        cwd="/",
        umask=0o077,
        env={"TZ": "Pacific/Auckland", "LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "2"},
    )
    assert first == second == GOLDEN
    assert (tmp_path / "a" / "toy.mar").read_bytes() == (tmp_path / "b" / "toy.mar").read_bytes()


@pytest.mark.parametrize("python", mostly_long("setup", pythons(), pythons()[-1:]))
@pytest.mark.parametrize(("archive_format", "name"), [FORMATS[0], FORMATS[3]])
def test_every_python_gives_the_same_bytes(
    tmp_path: Path, python: str, archive_format: ArchiveFormat, name: str
) -> None:
    write_files(tmp_path / "in")
    theirs = build_elsewhere(python, [str(tmp_path / "in"), str(tmp_path / name), archive_format])
    ours = write_archive(MANIFEST, members(), tmp_path / name, archive_format=archive_format, force=True)
    assert theirs == ours


def test_source_date_epoch_dates_the_manifest_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        write_archive(MANIFEST, members(), tmp_path / "toy.mar")
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert Archive.open(tmp_path / "toy.mar").manifest.created_on == "14/11/2023 22:13:20"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(BuildError, match="SOURCE_DATE_EPOCH is 'soon'"):
        write_archive(MANIFEST, members(), tmp_path / "toy2.mar")


def test_each_source_is_opened_once_and_memory_stays_small(tmp_path: Path) -> None:
    write_files(tmp_path / "in")
    with (tmp_path / "in" / "model.pt").open("wb") as file:
        file.truncate(300 << 20)
    watch = f"""
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
{BUILD}
assert opened.count(str(folder / "model.pt")) == 1, opened
# Not getrusage: its peak is inherited from the process that started this one.
status = Path("/proc/self/status").read_text()
peak_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024
assert peak_mb < 100, peak_mb
"""
    command = [sys.executable, "-c", watch, str(tmp_path / "in"), str(tmp_path / "toy.mar"), "zip-store"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}, stdout=subprocess.DEVNULL)


def test_progress_is_told_up_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    large = {**CONTENTS, "model.pt": bytes(3 << 20)}
    write_archive(MANIFEST, members(large), tmp_path / "toy.mar", on_progress=lambda *step: seen.append(step))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 3 << 20


# --- bad input: a clear error, and the folder as it was


def assert_refused(folder: Path, bad: list[Member], reason: str, root: Path | None = None) -> None:
    before = listing(folder)
    with pytest.raises(BuildError, match=reason):
        write_archive(MANIFEST, bad, folder / "toy.mar", root=root, force=True)
    assert listing(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "the name is empty"),
        ("/etc/passwd", "the name is absolute"),
        ("../evil.py", r"'\.' or '\.\.'"),
        ("a/../../b", r"'\.' or '\.\.'"),
        ("./a", r"'\.' or '\.\.'"),
        ("a//b", "empty part"),
        ("a\\b", "backslash"),
        ("a\nb", "control character"),
        ("\udcff", "not valid Unicode"),
        ("C:/x", "drive letter"),
        ("n" * 256, "too long"),
        ("model.pt", "two members have this name"),
        ("Model.PT", "are one file where case"),
        ("vocab/cafe\u0301.txt", "are one file where case or Unicode"),
        ("vocab", "a file and also a folder"),
        ("model.pt/x", "a file and also a folder"),
        ("MAR-INF/MANIFEST.json", "written by marsmith itself"),
        ("mar-inf/sha256sums", "written by marsmith itself"),
    ],
)
def test_a_name_that_could_do_harm_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    assert_refused(tmp_path, [*members(), Member(name, b"")], reason)


def test_a_source_that_is_no_file_is_refused_and_every_problem_named(tmp_path: Path) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    store.mkdir()
    (store / "toy.mar").write_bytes(b"the old archive")
    other.mkdir()
    os.mkfifo(other / "pipe")
    (other / "dangling").symlink_to("nowhere")
    bad = [Member(f"x/{kind}", other / kind) for kind in ("missing", "pipe", "dangling")]
    bad.append(Member("x/folder", other))
    assert_refused(store, [*members(), *bad], "(?s)missing: does not exist")
    for reason in (
        "pipe: not a regular file",
        "dangling: is a link to a file that",
        "other: a folder instead of a file",
    ):
        assert_refused(store, [*members(), *bad], reason)


def test_a_link_out_of_the_root_is_refused_and_one_within_is_followed(tmp_path: Path) -> None:
    root, store = tmp_path / "project", tmp_path / "store"
    files = write_files(root)
    store.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "out").symlink_to("../secret")
    (root / "in").symlink_to("model.pt")
    assert_refused(store, [*files, Member("out", root / "out")], "leads out of", root)
    write_archive(MANIFEST, [*files, Member("in", root / "in")], store / "toy.mar", root=root)
    assert Archive.open(store / "toy.mar").read("in") == WEIGHTS


@pytest.mark.parametrize("missing", ["model.pt", "toy_handler.py"])
def test_a_manifest_that_names_what_is_not_there_is_refused(tmp_path: Path, missing: str) -> None:
    rest = [member for member in members() if member.name != missing]
    assert_refused(tmp_path, rest, f"'{missing}': no such member")


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path / "in", {**CONTENTS, "model.pt": bytes(4 << 20)})
    store = tmp_path / "store"
    store.mkdir()

    def grow(done: int, total: int) -> None:
        with (tmp_path / "in" / "model.pt").open("ab") as file:
            file.write(b"more")

    with pytest.raises(BuildError, match=r"model\.pt: its source changed while it was read"):
        write_archive(MANIFEST, files, store / "toy.mar", on_progress=grow)
    assert listing(store) == {}


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_an_existing_archive_is_kept_without_force_and_replaced_with_it(
    tmp_path: Path, archive_format: ArchiveFormat, name: str
) -> None:
    write_archive(MANIFEST, members(), tmp_path / name, archive_format=archive_format)
    before = listing(tmp_path)
    newer = members({**CONTENTS, "model.pt": b"newer"})
    with pytest.raises(BuildError, match="already exists") as raised:
        write_archive(MANIFEST, newer, tmp_path / name, archive_format=archive_format)
    assert raised.value.tip is not None
    assert "--force" in raised.value.tip
    assert listing(tmp_path) == before
    write_archive(MANIFEST, newer, tmp_path / name, archive_format=archive_format, force=True)
    assert Archive.open(tmp_path / name).read("model.pt") == b"newer"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_a_folder_that_is_no_archive_is_never_replaced(
    tmp_path: Path, archive_format: ArchiveFormat, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="is a folder and not a model archive"):
        write_archive(MANIFEST, members(), tmp_path / name, archive_format=archive_format, force=True)
    assert listing(tmp_path) == {f"{name}/thesis.txt": b"years of work"}


def test_a_folder_that_may_not_be_written_gives_a_clear_error() -> None:
    with pytest.raises(BuildError, match=r"/sys/toy\.mar") as raised:
        write_archive(MANIFEST, members(), Path("/sys/toy.mar"))
    assert raised.value.tip is not None
    assert "/sys" in raised.value.tip


def test_a_missing_folder_gives_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no such folder"):
        write_archive(MANIFEST, members(), tmp_path / "none" / "toy.mar")


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_a_file_too_large_for_the_disk_leaves_the_old_archive(
    tmp_path: Path, archive_format: ArchiveFormat, name: str
) -> None:
    """A process that may write 1 MiB files stands for a full disk: the same error path, without needing a mount."""
    store = tmp_path / "store"
    store.mkdir()
    write_archive(MANIFEST, members(), store / name, archive_format=archive_format)
    before = listing(store)
    write_files(tmp_path / "in", {**CONTENTS, "model.pt": bytes(2 << 20)})
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n{BUILD}"
    command = [sys.executable, "-c", script, str(tmp_path / "in"), str(store / name), archive_format, "force"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "a file may not be as large" in done.stderr
    assert listing(store) == before


def test_a_full_disk_leaves_the_old_archive(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {**CONTENTS, "model.pt": bytes(2 << 20)})
    (tmp_path / "disk").mkdir()
    (tmp_path / "build.py").write_text(BUILD)
    # A disk of 1 MiB, in a namespace of its own.
    script = """
        mount -t tmpfs -o size=1m none disk || exit 77
        echo old > disk/toy.mar
        "$0" build.py in disk/toy.mar zip-store force
        ls -A disk; cat disk/toy.mar
    """
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine does not let users mount")
    assert f"BuildError: {tmp_path}/disk/toy.mar cannot be written by the user" in done.stderr
    assert "no space is left on the disk" in done.stderr
    assert done.stdout == "toy.mar\nold\n"


# --- never half an archive


def servable(store: Path) -> list[Path]:
    """What TorchServe's load_models=all would load: folders and archives that are not hidden."""
    return [
        path
        for path in store.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.name.endswith((".mar", ".model", ".tar.gz")))
    ]


def assert_whole(path: Path) -> str:
    archive = Archive.open(path)
    digests = archive.member_digests()
    digests.pop("MAR-INF/SHA256SUMS")
    assert archive.sums == digests
    return archive.digest()


@pytest.mark.parametrize(
    ("archive_format", "name"), mostly_long("kills", [FORMATS[0], FORMATS[2], FORMATS[3]], FORMATS[:1])
)
def test_a_build_killed_at_any_moment_leaves_the_old_archive_or_the_new_one(
    tmp_path: Path, archive_format: ArchiveFormat, name: str
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    write_files(tmp_path / "in", {**CONTENTS, "model.pt": bytes(24 << 20)})
    old = write_archive(MANIFEST, members(), store / name, archive_format=archive_format)
    command = [sys.executable, "-c", BUILD, str(tmp_path / "in"), str(store / name), archive_format, "force"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    chance, killed, seen, duration = random.Random(0), 0, set(), 0.5
    for _ in range(12):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as builder:
            started = time.monotonic()
            try:
                builder.wait(timeout=duration * chance.uniform(0.1, 1.1))
                duration = time.monotonic() - started
            except subprocess.TimeoutExpired:
                builder.kill()
                killed += 1
        assert [path.name for path in servable(store)] == [name]
        seen.add(assert_whole(store / name))
    again = [Member(file, tmp_path / "in" / file) for file in CONTENTS]
    new = write_archive(MANIFEST, again, store / name, archive_format=archive_format, force=True)
    assert seen <= {old, new}
    assert killed
    assert [path.name for path in store.iterdir()] == [name], "the next build removes what killed ones left"


@pytest.mark.parametrize(("archive_format", "name"), [FORMATS[0], FORMATS[3]])
def test_what_a_killed_build_has_written_is_hidden_and_goes_with_the_next_build(
    tmp_path: Path, archive_format: ArchiveFormat, name: str
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    write_files(tmp_path / "in")
    stuck = BUILD.replace("force=", "on_progress=lambda *_: (print('writing', flush=True), sys.stdin.read()), force=")
    command = [sys.executable, "-c", stuck, str(tmp_path / "in"), str(store / name), archive_format]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as builder:  # type: ignore[call-overload]
        assert builder.stdout.readline() == b"writing\n"
        builder.kill()
    assert len(list(store.iterdir())) == 1
    assert servable(store) == []
    write_archive(MANIFEST, members(), store / name, archive_format=archive_format)
    assert [path.name for path in store.iterdir()] == [name]


def test_what_a_living_build_writes_is_not_taken_for_litter(tmp_path: Path) -> None:
    alive, dead = tmp_path / f".toy.mar.{'a' * 16}.tmp", tmp_path / f".toy.mar.{'b' * 16}.tmp"
    foreign = tmp_path / ".toy.mar.notes.tmp"
    for path in (alive, dead, foreign):
        path.write_bytes(b"half")
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_archive(MANIFEST, members(), tmp_path / "toy.mar")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, foreign.name, "toy.mar"])


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("archive_format", "name"), [FORMATS[0], FORMATS[3]])
def test_builds_of_one_name_at_once_all_succeed(
    tmp_path: Path, archive_format: ArchiveFormat, name: str, force: bool
) -> None:
    everyone_writes = threading.Barrier(4)

    def build(_: int) -> str:
        waited: list[int] = []

        def wait(done: int, total: int) -> None:
            if not waited:
                waited.append(everyone_writes.wait(30))

        return write_archive(
            MANIFEST, members(), tmp_path / name, archive_format=archive_format, force=force, on_progress=wait
        )

    with ThreadPoolExecutor(4) as pool:
        digests = set(pool.map(build, range(4)))
    assert len(digests) == 1
    assert digests == {assert_whole(tmp_path / name)}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_another_archive_that_appears_during_the_build_is_kept(tmp_path: Path) -> None:
    def intrude(done: int, total: int) -> None:
        (tmp_path / "toy.mar").write_bytes(b"someone else's")

    with pytest.raises(BuildError, match="was made by something else"):
        write_archive(MANIFEST, members(), tmp_path / "toy.mar", on_progress=intrude)
    assert listing(tmp_path) == {"toy.mar": b"someone else's"}


def test_the_handler_is_served_as_it_was_given(tmp_path: Path) -> None:
    write_archive(MANIFEST, members(), tmp_path / "toy.mar")
    assert Archive.open(tmp_path / "toy.mar").read("toy_handler.py") == HANDLER
