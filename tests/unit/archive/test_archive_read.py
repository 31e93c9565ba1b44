"""Archives are opened, read and unpacked as they are; a hostile one is refused, each kind with its own message."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marsmith.archive import Archive
from marsmith.archive.members import ReadLimits
from marsmith.archive.verify import verify
from marsmith.errors import ArchiveError, FormatError, HostileArchiveError, MarsmithError
from support.raw_archives import MANIFEST, Entry, manifest_entry, ours, raw_tar, raw_zip, tar_member

H = b"def handle(data, context):\n    return data\n"
LOCATOR = struct.pack("<4sLQ", b"PK\6\7", 0, 0)
GOOD_TAR = [tar_member("m/MAR-INF/MANIFEST.json", MANIFEST), tar_member("m/h.py", H)]
FORMATS = [("zip-store", "a.mar"), ("default", "a.mar"), ("tgz", "a.tar.gz"), ("no-archive", "a")]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "a.mar"
    path.write_bytes(content)
    return path


def refuse(folder: Path, content: bytes, reason: str) -> None:
    """Open and unpack; whichever comes upon the trap must refuse it, and nothing may lie outside or be left over."""
    path = write(folder, content)
    target = folder / "inner" / "out"
    target.parent.mkdir()
    with pytest.raises(HostileArchiveError, match=reason):
        Archive.open(path).extract(target)
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.mar", "inner"]
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_every_format_of_ours_reads_back(tmp_path: Path, archive_format: Any, name: str) -> None:
    archive = ours(tmp_path / name, archive_format=archive_format)
    assert archive.is_ours
    assert archive.manifest.model_name == "toy"
    assert archive.read("model.pt") == bytes(range(256)) * 2
    assert archive.members["model.pt"].size == 512
    assert archive.sums is not None
    assert archive.sums.keys() == archive.members.keys() - {"MAR-INF/SHA256SUMS"}
    unpacked = archive.extract(tmp_path / "out")
    files = {p.relative_to(unpacked).as_posix(): p.read_bytes() for p in unpacked.rglob("*") if p.is_file()}
    assert files.keys() == archive.members.keys()
    assert files["index_to_name.json"].decode() == '{"0": "Löwe"}'
    assert (
        subprocess.run(["sha256sum", "-c", "--quiet", "MAR-INF/SHA256SUMS"], cwd=unpacked, check=False).returncode == 0
    )


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz", "no-archive"])
def test_every_format_of_the_stock_tool_reads_back(tmp_path: Path, archive_format: str) -> None:
    (tmp_path / "w.pt").write_bytes(bytes(5000))
    (tmp_path / "h.py").write_bytes(H)
    (tmp_path / "extra" / "sub").mkdir(parents=True)
    (tmp_path / "extra" / "sub" / "größe.txt").write_text("x")
    (tmp_path / "extra" / ("long" * 40 + ".txt")).write_text("y")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "store").mkdir()
    tool = Path(sys.executable).with_name("torch-model-archiver")
    files = ["--serialized-file", "w.pt", "--handler", "h.py", "--extra-files", "extra"]
    made = ["--model-name", "m", "--version", "1.0", "--export-path", "store", "--archive-format", archive_format]
    subprocess.run(
        [tool, *files, *made], cwd=tmp_path, env={"TMPDIR": str(tmp_path / "tmp")}, check=True, capture_output=True
    )
    (made_archive,) = (tmp_path / "store").iterdir()
    archive = Archive.open(made_archive)
    assert not archive.is_ours
    assert archive.manifest.handler == "h.py"
    assert archive.members.keys() == {"MAR-INF/MANIFEST.json", "w.pt", "h.py", "sub/größe.txt", "long" * 40 + ".txt"}
    assert archive.read("w.pt") == bytes(5000)
    assert (archive.extract(tmp_path / "out") / "sub" / "größe.txt").read_text() == "x"


def test_a_stream_gives_the_content_piece_by_piece(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a.mar")
    with archive.open_member("model.pt") as stream:
        assert stream.read(3) == b"\0\1\2"
        assert stream.read(2) == b"\3\4"


def test_an_unknown_member_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"no member 'handlr\.py'; did you mean 'handler\.py'"):
        ours(tmp_path / "a.mar").read("handlr.py")


def test_a_member_above_the_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"'model.pt': 512 bytes, above its limit of 511"):
        ours(tmp_path / "a.mar").read("model.pt", limit=511)


def test_a_file_swapped_after_opening_is_refused(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a.mar")
    # Kept, or the new file could take its place on the disk as well, within one tick of the clock.
    archive.path.rename(tmp_path / "old.mar")
    ours(tmp_path / "a.mar")
    with pytest.raises(ArchiveError, match="changed while it was read"):
        archive.read("model.pt")


def test_a_full_folder_is_not_unpacked_into(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a.mar")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ArchiveError, match="cannot unpack into"):
        archive.extract(tmp_path / "out")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.mar", "out"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a zip"),
        (b"hello", "not a zip"),
        (raw_zip([manifest_entry()])[:-30], "cut off"),
        (raw_zip([manifest_entry()])[:60], "cut off"),
        (raw_zip([Entry("h.py", H)]), "no MAR-INF/MANIFEST.json"),
        (raw_zip([]), "no MAR-INF/MANIFEST.json"),
        (raw_zip([manifest_entry(), Entry("h.py", H, both={"crc": 1})]), r"'h.py': its content has CRC"),
        (raw_zip([manifest_entry(), Entry("h.py", H, deflate=True, packed=b"\xff\xff")]), "'h.py': .* damaged"),
        (gzip.compress(b"x" * 600, mtime=0), "not a tar file"),
        (raw_tar(GOOD_TAR)[:-20], "cut off"),
        (raw_tar(GOOD_TAR, end=b""), "cut off"),
        (raw_tar(GOOD_TAR, end=bytes(512)), "cut off"),
        (b"\x1f\x8b" + bytes(50), "gzip data is damaged"),
    ],
)
def test_a_damaged_archive_is_told_apart_from_a_hostile_one(tmp_path: Path, content: bytes, reason: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ArchiveError, match=reason) as caught:
        Archive.open(path).extract(tmp_path / "out")
    assert not isinstance(caught.value, HostileArchiveError)


BAD_NAMES = [
    ("../evil.py", r"\.\./evil\.py': the name holds '\.' or '\.\.'"),
    ("a/../../evil.py", "holds '.' or '..'"),
    ("./a", "holds '.' or '..'"),
    ("/etc/evil", "absolute"),
    ("a//b", "empty part"),
    ("a\\..\\b", "backslash"),
    ("a\0b", "NUL"),
    ("a\nb", "control character"),
    ("a\x1b[2Jb", "control character"),
    ("a\u202eyp.b", "hides or reorders text"),
    ("a\u200bb", "hides or reorders text"),
    ("a\u2028b", "hides or reorders text"),
    ("a\u3164b", "hides or reorders text"),
    ("x" * 300, "too long"),
]


@pytest.mark.parametrize(
    ("name", "reason"), [*BAD_NAMES, ("C:/evil", "drive letter"), ("c:evil", "drive letter"), ("", "empty")]
)
def test_a_name_in_a_zip_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    refuse(tmp_path, raw_zip([manifest_entry(), Entry(name, b"x")]), reason)


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES)
def test_a_name_in_a_tar_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    below = name if name.startswith("/") else f"m/{name}"
    # A NUL ends the name in a plain header; in a pax header it does not.
    refuse(tmp_path, raw_tar([*GOOD_TAR, pax(f"path={below}"), tar_member("m/x", b"x")]), reason)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry(b"\xff\xfe.py", b"x", both={"flags": 0x800}), "not valid UTF-8"),
        (Entry("é.py", b"x", both={"flags": 0}), "not marked as such"),
        (Entry("h.py", b"x", both={"flags": 0x1}), "encrypted"),
        (Entry("h.py", b"x", both={"flags": 0x2040}), "encrypted"),
        (Entry("h.py", b"x", both={"extra": struct.pack("<2H", 0x9901, 0)}), "AES"),
        (Entry("h.py", b"x", both={"flags": 0x8}), "stored with a data descriptor"),
        (Entry("h.py", b"x", both={"flags": 0x20}), "sets flags"),
        (Entry("h.py", b"x", both={"method": 12}), "method 12"),
        (Entry("h.py", b"x", both={"needed": 62}), "version 6.2"),
        (Entry("h.py", b"target", central={"external": 0o120777 << 16}), "symbolic link"),
        (Entry("h.py", b"", central={"external": 0o010644 << 16}), "device, pipe"),
        (Entry("h.py", b"", central={"external": 0o020644 << 16}), "device, pipe"),
        (Entry("h.py", b"", central={"external": 0o040755 << 16}), "disagree on whether it is a folder"),
        (Entry("h/", b"hidden", central={"external": 0o040755 << 16}), "folder, with content"),
        (Entry("h.py", b"x", central={"comment": b"hi"}), "comment"),
        (Entry("h.py", b"x", central={"disk": 1}), "multi-disk"),
        (Entry("h.py", b"x", both={"extra": struct.pack("<2H", 0x7075, 0)}), "second name"),
        (Entry("h.py", b"x", both={"extra": b"\1\0\xff"}), "malformed"),
        (Entry("h.py", b"x", both={"extra": struct.pack("<2H", 9, 8)}), "malformed"),
        (Entry("h.py", b"x", local={"name": b"g.py"}), "'h.py': its local header names it 'g.py'"),
        (Entry("h.py", b"x", local={"size": 2}), "its size is 2 in the local header, 1 in the directory"),
        (Entry("h.py", b"x", local={"packed": 2}), "its compressed size is 2"),
        (Entry("h.py", b"x", local={"crc": 7}), "its CRC is 7"),
        (Entry("h.py", b"x", local={"method": 8}), "its method is 8"),
        (Entry("h.py", b"x", local={"flags": 1}), "its flags is 1"),
        (Entry("h.py", b"x", local={"date": 1}), "its date is 1"),
        (Entry("h.py", b"xx", both={"size": 1}), "stored, with size 1 and 2"),
        (Entry("h.py", H, deflate=True, both={"size": 5}), "holds more than the 5 bytes"),
        (Entry("h.py", H, deflate=True, both={"size": 100}), "claims 100 bytes and holds 43"),
        (Entry("h.py", H, deflate=True, both={"size": 1 << 31}), "more than deflate can compress"),
        (Entry("h.py", b"x", both={"size": 0xFFFFFFFF}), "zip64 field"),
        (Entry("h.py", b"x", local={"extra": struct.pack("<2H2Q", 1, 16, 9, 9)}), "zip64 field there disagree"),
        (Entry("h.py", b"x", local={"extra": struct.pack("<2HQ", 1, 8, 1)}), "does not hold both sizes"),
        (Entry("h.py", b"x", central={"extra": struct.pack("<2HQ", 1, 8, 1)}), "exactly the values"),
        (Entry("h.py", b"x", both={"extra": struct.pack("<2H2Q", 1, 16, 1, 1) * 2}), "two zip64 fields"),
        (Entry("h.py", b"x", central={"offset": 0}), "within or before another member"),
        (Entry("h.py", b"x", central={"offset": 500}), "belong to no member"),
    ],
)
def test_a_zip_entry_that_lies_is_refused(tmp_path: Path, entry: Entry, reason: str) -> None:
    refuse(tmp_path, raw_zip([manifest_entry(), entry]), reason)


def test_compressed_data_that_ends_early_is_refused_because_java_would_go_on_there(tmp_path: Path) -> None:
    good = Entry("h.py", H, deflate=True)
    smuggled = raw_zip([Entry("evil.py", b"evil")])[:40]
    refuse(
        tmp_path,
        raw_zip([manifest_entry(), Entry("h.py", H, deflate=True, packed=good.data() + smuggled)]),
        "ends before",
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"#!/bin/sh\n" + raw_zip([manifest_entry()]), "before the first member|end record"),
        (raw_zip([manifest_entry()], tail=b"x"), "after its end record"),
        (raw_zip([manifest_entry()], end={"comment": b"hello"}), "comment"),
        (raw_zip([manifest_entry()], gap=b"hidden"), "6 bytes before offset .* belong to no member"),
        (raw_zip([manifest_entry(), Entry("h.py", H, before=b"hidden")]), "6 bytes before offset"),
        (raw_zip([manifest_entry()], end={"count": 2, "here": 2}), "fewer entries"),
        (raw_zip([manifest_entry()], end={"count": 0, "here": 0}), "larger than its members allow"),
        (raw_zip([manifest_entry()], end={"disk": 1}), "multi-disk"),
        (raw_zip([manifest_entry()], end={"here": 2}), "multi-disk"),
        (raw_zip([manifest_entry()], end={"offset": 0xFFFFFFFF}), "zip64 record that is not there"),
        (
            raw_zip([manifest_entry()], end={"before": struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)}),
            "in the wrong place",
        ),
        (raw_zip([manifest_entry()], end={"before": struct.pack("<4sLQL", b"PK\6\7", 0, 0, 2)}), "multi-disk"),
    ],
)
def test_bytes_that_one_reader_never_sees_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    refuse(tmp_path, content, reason)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a.py", "a.py"), "'a.py': the name stands twice"),
        (("a.py", "A.py"), "differs from 'a.py' by case only"),
        (("\u00e9.py", "e\u0301.py"), "Unicode normalisation only"),
        (("a", "a/b"), "a file and also the folder"),
        (("a/b", "A/c"), "differs from 'a' by case only"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_names_for_one_file_are_refused(tmp_path: Path, names: tuple[str, str], reason: str, kind: str) -> None:
    if kind == "zip":
        refuse(tmp_path, raw_zip([manifest_entry(), *(Entry(name, b"x") for name in names)]), reason)
    else:
        below = reason.replace("'a", "'m/a")
        refuse(tmp_path, raw_tar([*GOOD_TAR, *(tar_member(f"m/{name}", b"x") for name in names)]), below)


def pax(*records: str) -> bytes:
    texts = []
    for record in records:
        length = len(record.encode()) + 2
        while len(f"{length} {record}\n".encode()) != length:
            length += 1
        texts.append(f"{length} {record}\n")
    return tar_member("m/pax", "".join(texts).encode(), kind=b"x")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([tar_member("m/x", kind=b"1", link=b"/etc/passwd")], "'m/x': it is a hard link"),
        ([tar_member("m/x", kind=b"2", link=b"/etc/passwd")], "symbolic link"),
        ([tar_member("m/x", kind=b"3")], "character device"),
        ([tar_member("m/x", kind=b"4")], "block device"),
        ([tar_member("m/x", kind=b"6")], "pipe"),
        ([tar_member("m/x", kind=b"7")], "contiguous"),
        ([tar_member("m/x", kind=b"S")], "sparse"),
        ([tar_member("m/x", b"y", kind=b"L")], "GNU long name"),
        ([tar_member("m/x", b"y", kind=b"K")], "GNU long link"),
        ([tar_member("m/x", b"y", kind=b"g")], "global extended header"),
        ([tar_member("m/x", kind=b"Q")], "its type b'Q'"),
        ([tar_member("m/d", b"y", kind=b"5")], "folder, with content"),
        ([tar_member("m/x", size=b"\x80" + bytes(11))], "base-256"),
        ([tar_member("m/x", size=b"999999999999")], "not a number"),
        ([tar_member("m/x", magic=b"\0" * 8)], "before 1988"),
        ([tar_member(b"m/\xff")], "not valid UTF-8"),
        ([tar_member("other/x")], "several top folders, 'm', 'other'"),
        ([tar_member("m/x", b"a")[:-1] + b"z"], "padding"),
        ([pax("GNU.sparse.major=1"), tar_member("m/x")], "GNU.sparse"),
        ([pax("linkpath=/etc"), tar_member("m/x")], "linkpath"),
        ([pax("size=-1"), tar_member("m/x")], "not a number"),
        ([pax("path=a", "path=b"), tar_member("m/x")], "twice"),
        ([pax("path=m/a"), pax("path=m/b"), tar_member("m/x")], "two extended headers"),
        ([pax("path=m/a")], "belongs to no member"),
        ([tar_member("m/pax", b"99 path=x\n", kind=b"x"), tar_member("m/x")], "malformed"),
        ([tar_member("m/pax", size=b"77777777777\0", kind=b"x")], "extended header has"),
        ([tar_member("x")], "several top folders"),
    ],
)
def test_a_tar_member_that_no_archive_needs_is_refused(tmp_path: Path, members: list[bytes], reason: str) -> None:
    refuse(tmp_path, raw_tar([*GOOD_TAR, *members]), reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (raw_tar(GOOD_TAR) + b"x", "after the end of its gzip stream"),
        (raw_tar(GOOD_TAR) + raw_tar([tar_member("m/evil")]), "after the end of its gzip stream"),
        (raw_tar(GOOD_TAR, end=bytes(1024) + tar_member("m/evil")), "after its end of archive"),
        (raw_tar(GOOD_TAR, end=bytes(2 << 20)), "too many zeros"),
        (raw_tar([tar_member("MAR-INF", MANIFEST)]), "outside the top folder"),
    ],
)
def test_a_tar_with_something_behind_it_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    refuse(tmp_path, content, reason)


def test_a_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a", archive_format="no-archive")
    (tmp_path / "secret").write_text("x")
    (archive.path / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(HostileArchiveError, match="'more': it is a symbolic link"):
        Archive.open(archive.path)


def test_a_folder_with_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a", archive_format="no-archive")
    os.mkfifo(archive.path / "pipe")
    with pytest.raises(HostileArchiveError, match="'pipe': it is a device, pipe"):
        Archive.open(archive.path)


def test_a_file_of_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a", archive_format="no-archive")
    (tmp_path / "secret").write_text("x" * 512)
    (archive.path / "model.pt").unlink()
    (archive.path / "model.pt").symlink_to(tmp_path / "secret")
    with pytest.raises(ArchiveError, match=r"model\.pt"):
        archive.read("model.pt")


def test_a_name_that_is_no_unicode_in_a_folder_is_refused(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a", archive_format="no-archive")
    Path(os.fsdecode(os.fsencode(archive.path) + b"/\xff.py")).write_text("x")
    with pytest.raises(HostileArchiveError, match="not valid Unicode"):
        Archive.open(archive.path)


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mar")
    with pytest.raises(ArchiveError, match="not a file"):
        Archive.open(tmp_path / "a.mar")


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    limits = ReadLimits(members=3)
    zipped = write(tmp_path, raw_zip([manifest_entry(), *(Entry(f"{i}", b"") for i in range(3))]))
    with pytest.raises(HostileArchiveError, match="4 members, above the limit of 3"):
        Archive.open(zipped, limits=limits)
    tarred = write(tmp_path, raw_tar([*GOOD_TAR, tar_member("m/1"), tar_member("m/2")]))
    with pytest.raises(HostileArchiveError, match="4 members, above the limit of 3"):
        Archive.open(tarred, limits=limits)
    folder = ours(tmp_path / "a", archive_format="no-archive")
    with pytest.raises(HostileArchiveError, match="4 members, above the limit of 3"):
        Archive.open(folder.path, limits=limits)


def test_more_content_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, raw_zip([manifest_entry(), Entry("h.py", H)]))
    with pytest.raises(HostileArchiveError, match="above the limit of 100"):
        Archive.open(path, limits=ReadLimits(total_bytes=100))


def test_a_manifest_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = write(tmp_path, raw_zip([Entry("MAR-INF/MANIFEST.json", b" " * (5 << 20), deflate=True)]))
    with pytest.raises(ArchiveError, match=r"MANIFEST\.json': 5,242,880 bytes, above its limit"):
        Archive.open(path)


def test_a_manifest_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, raw_zip([Entry("MAR-INF/MANIFEST.json", b"[" * 200_000)]))
    with pytest.raises(FormatError, match="nested too deeply"):
        Archive.open(path)


def deflated_gigabyte() -> bytes:
    """About 1 MB of deflate data that inflates to 1000 MiB of zeros."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflater.compress(b"")
    mebibyte = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return mebibyte * 1000 + deflater.flush()


def bomb_of_overlapping_entries() -> bytes:
    """Ten entries that share one deflated gigabyte."""
    fields = {"size": 1000 << 20, "crc": 0}
    entries = [manifest_entry(), Entry("bomb", deflate=True, packed=deflated_gigabyte(), both=fields)]
    entries += [Entry("bomb", deflate=True, packed=b"", both=fields, central={"offset": 100}) for _ in range(9)]
    return raw_zip(entries)


def bomb_of_gzip() -> bytes:
    """A gigabyte of zeros in a member that claims eight."""
    stored_head = zlib.compressobj(0, zlib.DEFLATED, -15)
    head = stored_head.compress(tar_member("m/x", size=b"%011o\0" % ((1 << 33) - 1)))
    return gzip.compress(b"")[:10] + head + stored_head.flush(zlib.Z_FULL_FLUSH) + deflated_gigabyte()


def honest_bomb() -> bytes:
    """An entry that holds the gigabyte that it claims."""
    fields = {"size": 1000 << 20, "crc": 0}
    return raw_zip([manifest_entry(), Entry("bomb", deflate=True, packed=deflated_gigabyte(), both=fields)])


def lying_bomb() -> bytes:
    """1 MB that claims to hold 10 GB, by zip64."""
    sizes = {"size": 0xFFFFFFFF, "packed": 1 << 20}
    local = struct.pack("<2H2Q", 1, 16, 10 << 30, 1 << 20)
    central = struct.pack("<2HQ", 1, 8, 10 << 30)
    packed = os.urandom(1 << 20)
    entry = Entry("b", deflate=True, packed=packed, both=sizes, local={"extra": local}, central={"extra": central})
    return raw_zip([manifest_entry(), entry])


BOUNDED = r"""
import re, sys, time
from marsmith.archive import Archive
from marsmith.errors import HostileArchiveError
started = time.process_time()
try:
    Archive.open(sys.argv[1]).extract(sys.argv[2])
except HostileArchiveError as error:
    # ru_maxrss would be that of the process that started this one, where that was larger.
    peak_kb = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]
    print(time.process_time() - started, peak_kb, error)
"""


@pytest.mark.parametrize("bomb", [bomb_of_overlapping_entries, bomb_of_gzip, honest_bomb, lying_bomb])
def test_a_megabyte_that_would_become_gigabytes_costs_no_time_and_no_memory(tmp_path: Path, bomb: Any) -> None:
    path = write(tmp_path, bomb())
    assert path.stat().st_size < 2 << 20
    run = [sys.executable, "-c", BOUNDED, str(path), str(tmp_path / "out")]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    seconds, kibibytes, message = out.split(" ", 2)
    # No measurement: inflating the gigabytes would take many times this.
    assert float(seconds) < 10, message
    assert int(kibibytes) < 100_000, message
    assert not (tmp_path / "out").exists()


def test_zip64_sizes_that_are_honest_are_read(tmp_path: Path) -> None:
    local, central = struct.pack("<2H2Q", 1, 16, len(H), len(H)), struct.pack("<2H2Q", 1, 16, len(H), len(H))
    wide = Entry(
        "h.py", H, both={"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF}, local={"extra": local}, central={"extra": central}
    )
    assert Archive.open(write(tmp_path, raw_zip([manifest_entry(), wide]))).read("h.py") == H


def test_python_and_this_reader_see_the_same_members(tmp_path: Path) -> None:
    path = tmp_path / "a.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        archive.mkdir("empty")
        archive.writestr("h.py", H)
    opened = Archive.open(path)
    assert list(opened.members) == ["MAR-INF/MANIFEST.json", "h.py"]
    assert opened.members["h.py"].method == "deflated"
    assert opened.read("h.py") == H


def test_pax_headers_that_python_writes_are_read(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_bytes(H)
    (tmp_path / "manifest").write_bytes(MANIFEST)
    name = "m/" + "é" * 90 + ".py"
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tmp_path / "manifest", "m/MAR-INF/MANIFEST.json")
        archive.add(tmp_path / "h.py", name)
    assert Archive.open(tmp_path / "a.tar.gz").read("é" * 90 + ".py") == H


def test_unpacked_files_carry_no_special_modes(tmp_path: Path) -> None:
    path = write(tmp_path, raw_zip([manifest_entry(), Entry("h.py", H, central={"external": 0o104777 << 16})]))
    mode = (Archive.open(path).extract(tmp_path / "out") / "h.py").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


@pytest.fixture(scope="session")
def valid(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("valid")
    built = [ours(folder / f"{i}{name}", archive_format=kind).path for i, (kind, name) in enumerate(FORMATS[:3])]
    return [path.read_bytes() for path in built] + [raw_tar(GOOD_TAR), raw_zip([manifest_entry(), Entry("h.py", H)])]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_of_an_archive_raises_anything_but_our_errors(
    tmp_path: Path, valid: list[bytes], data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(valid)))
    for _ in range(data.draw(st.integers(1, 4))):
        if not content:
            break
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "set", "cut", "insert", "truncate"]))
        if change == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "set":
            content[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\1\0\0\0", b"PK\3\4"]))
        elif change == "cut":
            del content[at : at + data.draw(st.integers(1, 60))]
        elif change == "insert":
            content[at:at] = data.draw(st.binary(max_size=60))
        else:
            del content[max(at, 1) :]
    path = write(tmp_path, bytes(content))
    target = tmp_path / "out"
    try:
        archive = Archive.open(path)
        verify(archive, environment=False)
        archive.extract(target)
    except MarsmithError:
        pass
    else:
        subprocess.run(["rm", "-r", str(target)], check=True)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"a.mar"}
