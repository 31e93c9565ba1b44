"""What a start serves when a version turns out not to load, and what is then remembered and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from marsmith.archive.store import open_stored
from marsmith.client.version_status import Registration
from marsmith.errors import UsageError
from marsmith.run_state import LeftOut
from marsmith.server.placeholder import stands_in, still_left_out, write_placeholder
from marsmith.server.served import Serving, next_state, plan_serving, without_version
from support.live_server import tiny_archive
from support.states import ONE, state_of, status

OLD, NEW = ("echo", "1.0"), ("echo", "2.0")
FILE = "echo-2.0.mar"


def serving(folder: Path, default: str | None, **workers: int) -> Serving:
    """Decide what is served of two versions, of which a server before had ``default`` as the default."""
    stored = [open_stored(tiny_archive(folder / f"{number}.mar", version=number)) for number in ("1.0", "2.0")]
    return plan_serving(stored, state_of(default, {"1.0": ONE, "2.0": ONE}) if default else None, {})


def test_no_other_version_takes_the_place_of_a_default_that_was_kept(tmp_path: Path) -> None:
    left = without_version(serving(tmp_path, "2.0"), NEW)
    assert [archive.version for archive in left.archives] == [OLD]
    assert left.defaults == {"echo": "2.0"}
    assert left.placeholders == (NEW,)


def test_the_place_of_a_default_that_nobody_has_seen_answer_is_free(tmp_path: Path) -> None:
    left = without_version(serving(tmp_path, None), NEW)
    assert (left.defaults, left.placeholders) == ({"echo": "1.0"}, ())
    none = without_version(left, OLD)
    assert (none.defaults, none.archives) == ({}, ())


def test_a_version_that_is_not_the_default_only_goes(tmp_path: Path) -> None:
    decided = replace(serving(tmp_path, "1.0"), workers={NEW: (2, 2), OLD: (3, 3)})
    left = without_version(decided, NEW)
    assert (left.defaults, left.placeholders, left.workers) == ({"echo": "1.0"}, (), {OLD: (3, 3)})


def test_one_that_stands_in_for_itself_is_remembered_as_it_was() -> None:
    state = state_of("2.0", {"1.0": ONE, "2.0": ONE})
    itself = replace(status("2.0", default=True, workers=0), workers=(), min_workers=0)
    assert stands_in(itself, {FILE})
    assert next_state(state, [status("1.0"), itself], {}, lambda _: True, left_out={FILE}) == state
    # A version that an operator has scaled to nothing is no such thing.
    assert not stands_in(itself, set())
    assert not stands_in(status("2.0", default=True), {FILE})


def test_what_answers_is_left_out_no_longer(tmp_path: Path) -> None:
    left_out = (LeftOut(FILE, "a worker died"), LeftOut("lost+found", "a folder", is_archive=False))
    folder = str(write_placeholder(tmp_path, NEW))
    assert still_left_out(left_out, [replace(status("2.0"), archive_url=folder)]) == left_out
    assert still_left_out(left_out, [replace(status("2.0", workers=0), workers=())]) == left_out
    assert still_left_out(left_out, [status("2.0")]) == left_out[1:]


def test_a_folder_is_registered_by_its_path_only_as_a_placeholder(tmp_path: Path) -> None:
    folder = str(write_placeholder(tmp_path / "My Project", NEW))
    assert Registration(folder).parameters()["url"] == folder
    for path in ("/etc/passwd", "/a/../b.folder", "a/b.folder"):
        with pytest.raises(UsageError):
            Registration(path).parameters()
