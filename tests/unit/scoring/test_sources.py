"""What the sources of a batch give, and how their bytes are read again."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marsmith.errors import UsageError
from marsmith.scoring.items import Item
from marsmith.scoring.reading import Reader, Unreadable
from marsmith.scoring.sources import Selection, holds, list_items


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/deep/b.jpg", "photos/deep/c.png", "photos/.hidden", "d.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())
    return tmp_path


def found(*sources: str, **selection: Any) -> dict[str, bytes | int]:
    """Return what the sources give: content by key, or the status of what cannot be read."""
    items = list(list_items(list(sources), Selection(**selection)))
    with Reader(items, Path.cwd()) as reader:
        read = {item.key: reader.read(item) for item in items}
    return {key: each.status if isinstance(each, Unreadable) else each for key, each in sorted(read.items())}


def write_tar(path: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, body in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))


def test_a_folder_gives_all_files_but_hidden_ones() -> None:
    keys = ["photos/a.jpg", "photos/deep/b.jpg", "photos/deep/c.png"]
    assert found("photos") == {key: key.encode() for key in keys}


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [("photos/*.jpg", ["photos/a.jpg"]), ("**/*.jpg", ["d.jpg", "photos/a.jpg", "photos/deep/b.jpg"])],
)
def test_a_pattern_gives_what_it_matches(pattern: str, keys: list[str]) -> None:
    assert list(found(pattern)) == keys


def test_links_are_followed_and_loops_end() -> None:
    Path("photos/loop").symlink_to("../photos")
    Path("photos/deep/link.jpg").symlink_to("../../d.jpg")
    assert {"photos/deep/link.jpg": b"d.jpg"}.items() <= found("photos").items()
    assert len(found("photos")) == 4


def test_a_link_to_itself_is_one_unreadable_input() -> None:
    Path("photos/itself").symlink_to("itself")
    assert found("photos")["photos/itself"] == 500
    assert len(found("photos")) == 4


def test_a_name_that_is_no_text_has_a_key_that_is() -> None:
    Path(os.fsdecode(b"photos/\xff.jpg")).write_bytes(b"x")
    assert found("photos/*.jpg")["photos/\\udcff.jpg"] == b"x"


def test_what_is_gone_refused_or_no_file_is_told_for_each_input() -> None:
    Path("photos/dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    items = list(list_items(["photos", "pipe", "d.jpg"], Selection()))
    Path("photos/a.jpg").unlink()
    Path("photos/deep/b.jpg").write_bytes(b"longer than before")
    status = Path("d.jpg").stat()
    Path("d.jpg").write_bytes(b"D.jpg")
    os.utime("d.jpg", ns=(0, status.st_mtime_ns + 1))
    with Reader(items, Path.cwd()) as reader:
        read = {item.key: reader.read(item) for item in items}
    statuses = {key: each.status for key, each in read.items() if isinstance(each, Unreadable)}
    assert statuses == {
        "photos/dangling": 404,
        "photos/a.jpg": 404,
        "photos/deep/b.jpg": 409,
        "d.jpg": 409,
        "pipe": 422,
    }
    gone = read["photos/a.jpg"]
    assert isinstance(gone, Unreadable)
    assert gone.message == "there is no such file any more"


def test_too_large_an_input_is_not_read() -> None:
    with Path("huge").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert found("huge") == {"huge": 413}


@pytest.mark.parametrize("size", ["²", "1.5", "-1", ""])
def test_a_size_that_is_no_number_is_asked(size: str) -> None:
    Path("list.csv").write_text(f"path,size,etag\nd.jpg,{size},x\n")
    assert found("list.csv") == {"d.jpg": b"d.jpg"}


def test_a_csv_lists_paths() -> None:
    Path("list.csv").write_text("id,path\n7,photos/a.jpg\n8,d.jpg\n9,nowhere.jpg\n")
    assert found("list.csv") == {"d.jpg": b"d.jpg", "nowhere.jpg": 404, "photos/a.jpg": b"photos/a.jpg"}
    assert found("list.csv", key="id") == {"7": b"photos/a.jpg", "8": b"d.jpg", "9": 404}


def test_an_empty_cell_and_a_folder_are_no_files() -> None:
    Path("list.csv").write_text("path,id\n,d.jpg\nphotos,2\nd.jpg,3\n")
    assert found("list.csv", key="id") == {"d.jpg": 422, "2": 422, "3": b"d.jpg"}
    assert found("list.csv") == {"": 422, "photos": 422, "d.jpg": b"d.jpg"}


def test_a_table_that_knows_sizes_and_stamps_asks_no_file() -> None:
    Path("list.csv").write_text("path,size,etag\nnowhere.jpg,12,abc\n")
    assert list(list_items(["list.csv"], Selection())) == [Item("nowhere.jpg", 12, "abc", "", 0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,id\nx,1\n", "no column 'path'"),
        ("", "no column 'path'"),
        ("path,id\nx\n", "line 2 has 1 values, its head 2"),
        ("path\n\udcff\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_csv_that_is_none_is_refused(text: str, said: str) -> None:
    Path("list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=said):
        found("list.csv")


def test_a_parquet_file_holds_bytes_in_several_row_groups() -> None:
    table = pa.table({"image": [b"zero", b"one", None, b"three", b"four"], "name": list("abcde")})
    pq.write_table(table, "photos.parquet", row_group_size=2)
    keys = [f"photos.parquet#{number:012}" for number in range(5)]
    assert found("photos.parquet") == dict(zip(keys, [b"zero", b"one", 422, b"three", b"four"], strict=True))
    assert found("photos.parquet", key="name", column="image")["d"] == b"three"


def test_a_parquet_file_lists_paths() -> None:
    pq.write_table(pa.table({"path": ["d.jpg", "nowhere"], "label": ["x", "y"]}), "list.parquet")
    assert found("list.parquet") == {"d.jpg": b"d.jpg", "nowhere": 404}
    with pytest.raises(UsageError, match="no column 'paht'; did you mean 'path'"):
        found("list.parquet", column="paht")


def test_a_column_may_have_any_name() -> None:
    pq.write_table(pa.table({"a:b/%3A": [b"one", b"two"]}), "named.parquet")
    assert list(found("named.parquet").values()) == [b"one", b"two"]


@pytest.mark.parametrize("value", [{"bytes": b"one", "path": "a"}, [b"one"], ["a"], 5])
def test_a_column_that_has_neither_paths_nor_bytes_is_refused(value: object) -> None:
    pq.write_table(pa.table({"path": [value]}), "other.parquet")
    with pytest.raises(UsageError, match=r"the column 'path' has .*, and not paths or bytes"):
        found("other.parquet")


def test_bytes_and_paths_may_be_stored_in_any_way() -> None:
    for number, kind in enumerate((pa.binary(3), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary()))):
        pq.write_table(pa.table({"body": pa.array([b"one"]).cast(kind)}), f"{number}.parquet")
        assert list(found(f"{number}.parquet").values()) == [b"one"]
    pq.write_table(pa.table({"path": pa.array(["d.jpg"]).dictionary_encode()}), "paths.parquet")
    assert found("paths.parquet") == {"d.jpg": b"d.jpg"}


def test_a_damaged_parquet_file_is_refused() -> None:
    pq.write_table(pa.table({"path": [f"{number:05}.jpg" for number in range(500)]}), "bad.parquet", compression=None)
    content = bytearray(Path("bad.parquet").read_bytes())
    content[40:400] = b"\xff" * 360
    Path("bad.parquet").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.parquet: not a whole Parquet file"):
        found("bad.parquet")


def test_files_that_hold_many_inputs_and_have_changed_since_the_plan_answer_nothing() -> None:
    write_tar("train-00.tar", {"01.jpg": b"one", "02.jpg": b"two"})
    pq.write_table(pa.table({"body": [b"one", b"two"]}), "bodies.parquet")
    items = list(list_items(["train-00.tar", "bodies.parquet"], Selection()))
    write_tar("train-00.tar", {"02.jpg": b"two", "01.jpg": b"one"})
    pq.write_table(pa.table({"body": [b"two"]}), "bodies.parquet")
    for path in ("train-00.tar", "bodies.parquet"):
        os.utime(path, ns=(0, 10**18))
    with Reader(items, Path.cwd()) as reader:
        read = [reader.read(item) for item in items]
    assert [each.status for each in read if isinstance(each, Unreadable)] == [409] * 4


def test_a_parquet_file_without_a_clear_column_is_refused() -> None:
    pq.write_table(pa.table({"a": ["x"], "n": [1]}), "list.parquet")
    with pytest.raises(UsageError, match="which column has the inputs is not clear: a, n"):
        found("list.parquet")
    with pytest.raises(UsageError, match="the column 'n' has int64, and not paths or bytes"):
        found("list.parquet", column="n")
    Path("none.parquet").write_bytes(b"no table")
    with pytest.raises(UsageError, match="not a whole Parquet file"):
        found("none.parquet")


def test_a_tar_gives_its_members_or_those_of_one_suffix() -> None:
    write_tar("train-00.tar", {"01.jpg": b"one", "01.cls": b"5", "02.jpg": b"two" * 700, "02.cls": b"6"})
    assert len(found("train-00.tar")) == 4
    assert found("*.tar", column="jpg") == {"train-00.tar/01.jpg": b"one", "train-00.tar/02.jpg": b"two" * 700}


def test_a_tar_that_is_cut_off_or_compressed_is_refused() -> None:
    write_tar("cut.tar", {"01.jpg": b"x" * 5000})
    Path("cut.tar").write_bytes(Path("cut.tar").read_bytes()[:3000])
    with pytest.raises(UsageError, match=r"cut\.tar: not a whole tar file"):
        found("cut.tar")
    Path("a.tar.gz").write_bytes(b"")
    with pytest.raises(UsageError, match="compressed as a whole"):
        found("a.tar.gz")


def test_members_of_a_tar_that_are_no_plain_files_are_left_out_or_refused() -> None:
    with tarfile.open("odd.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"/etc/{number}")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("../../outside.jpg"))
    assert found("odd.tar") == {"odd.tar/../../outside.jpg": b""}
    with tarfile.open("sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("holes.jpg")
        member.pax_headers = {"GNU.sparse.size": "1000000", "GNU.sparse.map": "0,0"}
        tar.addfile(member)
    with pytest.raises(UsageError, match=r"'holes\.jpg' is stored without its holes"):
        found("sparse.tar")


@pytest.mark.parametrize(
    ("source", "place", "is_held"),
    [
        ("photos", "photos", True),
        ("photos", "photos/deep/../answers", True),
        (".", "answers", True),
        ("photos", "photos/.answers", False),
        ("photos", "photos-answers", False),
        ("d.jpg", "answers", False),
        ("s3://a/photos", "s3://a/photos/answers", True),
        ("s3://a/photos", "s3://a/photos-answers", False),
        (".", "s3://a/answers", False),
    ],
)
def test_a_place_for_results_in_a_source_is_known(source: str, place: str, is_held: bool) -> None:
    assert holds(source, place) == is_held


def test_only_inputs_from_before_a_time_are_taken() -> None:
    os.utime("photos/a.jpg", ns=(0, 10**18))
    Path("list.csv").write_text("path\nphotos/a.jpg\nd.jpg\n")
    assert list(found("photos", until_ns=10**18 + 1)) == ["photos/a.jpg"]
    assert list(found("photos", until_ns=10**18)) == []
    assert list(found("list.csv", until_ns=10**18 + 1)) == ["photos/a.jpg"]


def test_a_source_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no such source: pohtos"):
        found("pohtos")
