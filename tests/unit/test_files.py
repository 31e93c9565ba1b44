"""Files that are whole or not there, locks that end with their holder, and digests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marsmith.files import (
    LockedError,
    copy,
    lock,
    made_folder,
    publish,
    sha256,
    sha256_of,
    try_lock,
    write_atomically,
)

HOLDER = """
import sys
from pathlib import Path
from marsmith.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("content", "expected"), [("größer\n", "größer\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path, content: str | bytes, expected: bytes) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, content)
    assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def test_it_keeps_the_mode_of_what_it_replaces_and_takes_the_one_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0o022)
    try:
        write_atomically(path, "a", mode=0o600)
        assert path.stat().st_mode & 0o777 == 0o600
        write_atomically(path, "b")
        assert path.stat().st_mode & 0o777 == 0o600
        write_atomically(path, "c", mode=0o664)
        assert path.stat().st_mode & 0o777 == 0o664
        write_atomically(tmp_path / "new", "d")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_what_was_there_is_as_it_was_where_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError) as caught, lock(path, wait_s=0.0):
            pass
        assert caught.value.holder == str(holder.pid)
        holder.kill()
        with lock(path):
            assert path.exists()
    assert path.exists()


def test_a_lock_takes_its_file_along_where_it_is_asked_to_and_the_next_one_makes_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with lock(path, wait_s=0.0, remove=True):
            assert path.exists()
        assert not path.exists()


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic"), lock(tmp_path / "lock"):
        pass


def test_a_folder_that_stays_empty_goes_again_with_what_was_made_above_it(tmp_path: Path) -> None:
    with made_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with made_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_takes_the_place_of_a_link_where_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new", mode=0o600, follow_links=False)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "real").read_text() == "old"


def test_a_finished_file_gets_its_name_or_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "part").write_text("new")
    (tmp_path / "file").write_text("old")
    publish(tmp_path / "part", tmp_path / "file")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "new"}
    (tmp_path / "part").write_text("newer")
    with pytest.raises(OSError, match="absent"):
        publish(tmp_path / "part", tmp_path / "absent" / "file")
    assert (tmp_path / "part").read_text() == "newer"


def test_a_copy_gives_the_digest_of_what_was_copied(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 7)
    (tmp_path / "source").write_bytes(content)
    assert copy(tmp_path / "source", tmp_path / "target") == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "target").read_bytes() == content
    with (tmp_path / "target").open("rb") as stream:
        stream.seek(9)
        assert sha256_of(stream) == hashlib.sha256(content[9:]).hexdigest()


def test_a_lock_is_refused_as_long_as_another_holds_it(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as first, (tmp_path / "file").open("w") as second:
        assert try_lock(first.fileno())
        assert not try_lock(second.fileno())
        first.close()
        assert try_lock(second.fileno())
