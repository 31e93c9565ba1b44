"""Files that a batch creates: whole, durable, never replaced, by one of several that race."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from marsmith.errors import AccessError
from marsmith.scoring import urls
from marsmith.scoring.destination import Folder, Prefix, open_destination
from marsmith.scoring.reading import Reader, Unreadable
from marsmith.scoring.sources import Selection, list_items
from support.object_store import object_store


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """An object store with a bucket; yields the URL of a prefix in it."""
    with object_store("bucket") as url:
        yield f"{url}/answers"


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder | Prefix]:
    is_folder = request.param == "folder"
    address = str(tmp_path / "to") if is_folder else f"{request.getfixturevalue('store')}/{tmp_path.name}"
    with open_destination(address) as destination:
        yield destination


def test_a_file_is_created_once_and_never_replaced(place: Folder | Prefix, tmp_path: Path) -> None:
    assert place.names() == set()
    assert place.create("part-0000001.parquet", b"first")
    assert not place.create("part-0000001.parquet", b"second")
    assert place.read("part-0000001.parquet") == b"first"
    (tmp_path / "keys").write_bytes(b"many keys")
    place.upload("_plan.keys", tmp_path / "keys")
    assert {"part-0000001.parquet", "_plan.keys"} <= place.names()
    with pytest.raises(FileNotFoundError):
        place.read("nothing")


def test_of_many_that_race_exactly_one_wins(place: Folder | Prefix) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: place.create("part", str(number).encode()), range(8)))
    assert sum(won) == 1
    assert place.read("part") == str(won.index(True)).encode()


def test_nothing_temporary_stays_in_a_folder(tmp_path: Path) -> None:
    with open_destination(str(tmp_path / "to")) as destination:
        destination.create("part", b"x")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["part"]


def test_a_full_disk_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_destination(str(tmp_path / "to")) as destination:
        destination.create("one", b"x")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(AccessError, match="no space is left on the disk"):
            destination.create("two", b"x")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["one"]


def test_a_folder_without_hard_links_gets_its_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with open_destination(str(tmp_path / "to")) as destination:
        assert destination.create("part", b"first")
        assert not destination.create("part", b"second")
        assert destination.read("part") == b"first"


def test_a_missing_bucket_is_told(store: str) -> None:
    with pytest.raises(AccessError, match="s3://nowhere/x/part"):
        open_destination("s3://nowhere/x").create("part", b"x")


def test_lost_permissions_are_told() -> None:
    def refuse() -> None:
        raise PermissionError("Access Denied")

    with pytest.raises(AccessError, match="s3://bucket/part: the store refuses this: Access Denied"):
        urls.refusable("s3://bucket/part", refuse)


def test_objects_are_listed_and_read_as_files_are(store: str) -> None:
    client = boto3.client("s3")
    for name in ("in/a.jpg", "in/deep/b.jpg", "in/c.png"):
        client.put_object(Bucket="bucket", Key=name, Body=name.encode())
    items = sorted(list_items(["s3://bucket/in"], Selection()))
    assert [item.key for item in items] == [f"s3://bucket/in/{name}" for name in ("a.jpg", "c.png", "deep/b.jpg")]
    assert all(item.stamp and item.size > 0 for item in items)
    assert [each.key for each in list_items(["s3://bucket/in/*.jpg"], Selection())] == ["s3://bucket/in/a.jpg"]
    client.delete_object(Bucket="bucket", Key="in/c.png")
    with Reader(items, Path.cwd()) as reader:
        (_, read), *_ = reader.batches([(0, 1, 2)])
    assert (read[0], read[2]) == (b"in/a.jpg", b"in/deep/b.jpg")
    assert isinstance(read[1], Unreadable)
    assert read[1].status == 404
