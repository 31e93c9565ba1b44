from __future__ import annotations

import os
from pathlib import Path

from marsmith.export.stamp import is_current, recorded_digest, write_stamp
from marsmith.files import sha256


def _stamped(folder: Path) -> tuple[Path, Path]:
    file, stamp = folder / "input", folder / "stamp.json"
    file.write_text("a")
    write_stamp(stamp, {"version": "1"}, [file], folder)
    return file, stamp


def test_nothing_changed_means_current(tmp_path: Path) -> None:
    _, stamp = _stamped(tmp_path)
    assert is_current(stamp, {"version": "1"}, tmp_path)


def test_a_touched_file_is_still_current(tmp_path: Path) -> None:
    file, stamp = _stamped(tmp_path)
    os.utime(file, ns=(1, 1))
    assert is_current(stamp, {"version": "1"}, tmp_path)


def test_changed_content_or_inputs_or_a_missing_file_are_not(tmp_path: Path) -> None:
    file, stamp = _stamped(tmp_path)
    assert not is_current(stamp, {"version": "2"}, tmp_path)
    file.write_text("b")
    os.utime(file, ns=(1, 1))
    assert not is_current(stamp, {"version": "1"}, tmp_path)
    file.unlink()
    assert not is_current(stamp, {"version": "1"}, tmp_path)


def test_a_damaged_stamp_is_no_stamp(tmp_path: Path) -> None:
    _, stamp = _stamped(tmp_path)
    stamp.write_text("{")
    assert not is_current(stamp, {"version": "1"}, tmp_path)
    assert not is_current(tmp_path / "none", {}, tmp_path)


def test_a_moved_project_is_still_current(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    _stamped(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert is_current(tmp_path / "b" / "stamp.json", {"version": "1"}, tmp_path / "b")


def test_a_product_that_was_changed_without_a_new_size_or_time_is_told_by_its_digest(tmp_path: Path) -> None:
    file, stamp = _stamped(tmp_path)
    assert recorded_digest(stamp, file, tmp_path) == sha256(file)
    times = file.stat()
    file.write_text("b")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert is_current(stamp, {"version": "1"}, tmp_path), "reading every input anew would cost seconds"
    assert recorded_digest(stamp, file, tmp_path) != sha256(file)
    assert recorded_digest(stamp, tmp_path / "other", tmp_path) is None
    assert recorded_digest(tmp_path / "none", file, tmp_path) is None
