"""The plan: sorted in bounded memory, cut into shards, equal for equal inputs, and compared in words."""

from __future__ import annotations

import itertools
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.errors import FormatError, UsageError
from marsmith.scoring import plan as plans
from marsmith.scoring.items import Item, from_line, to_line
from marsmith.scoring.plan import Plan, Settings, differences, first_difference, make_plan, parse_plan, shard_items

SETTINGS = Settings("m:1.0", "a" * 64, shard_rows=3, batch_size=2, threads=1, reply="json")
# As in names of files: any bytes, which Python has as lone surrogates, and no null.
NAMES = st.binary(max_size=12).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def item(key: str, size: int = 1, source: int = 0) -> Item:
    return Item(key, size, "m17", "", source)


def planned(folder: Path, items: list[Item], settings: Settings = SETTINGS) -> tuple[Plan, Path]:
    folder.mkdir()
    return make_plan(items, ["one", "two"], settings, folder)


@given(st.builds(Item, NAMES, st.integers(-1, 1 << 40), NAMES, NAMES, st.integers(0, 99)))
def test_an_item_survives_its_line(given_item: Item) -> None:
    line = to_line(given_item)
    assert line.count(b"\n") == 1
    assert from_line(line) == given_item


@given(st.lists(st.text(string.ascii_letters + "/. é-_", min_size=1), unique=True, min_size=1))
def test_lines_are_sorted_as_their_keys(keys: list[str]) -> None:
    lines = sorted(to_line(item(key)) for key in keys)
    assert [from_line(line).key for line in lines] == sorted(keys, key=str.encode)


@pytest.mark.parametrize(("chunk", "files"), [(2, 2), (3, 256), (10_000, 256)])
def test_the_plan_is_the_same_however_it_is_sorted(
    chunk: int, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_CHUNK_LINES", chunk)
    monkeypatch.setattr(plans, "_MOST_FILES", files)
    keys = [f"{number * 7919 % 23:02}" for number in range(23)]
    plan, file = planned(tmp_path / "work", [item(key) for key in keys])
    assert (plan.inputs, plan.shards, plan.rows(7)) == (23, 8, 2)
    found = [shard_items(file, plan, shard) for shard in range(plan.shards)]
    assert [each.key for each in itertools.chain(*found)] == sorted(keys)
    assert [len(each) for each in found] == [3] * 7 + [2]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["keys"], "nothing temporary stays"
    monkeypatch.undo()
    assert planned(tmp_path / "again", [item(key) for key in sorted(keys)])[0].digest == plan.digest


@pytest.mark.parametrize("change", [{"size": 2}, {"source": 1}])
def test_a_plan_differs_if_an_input_does(change: dict[str, int], tmp_path: Path) -> None:
    old, _ = planned(tmp_path / "old", [item("a"), item("b")])
    new, _ = planned(tmp_path / "new", [item("a"), item("b", **change)])
    assert old.digest != new.digest


def test_a_key_that_comes_twice_is_refused_with_both_sources(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the input 'b' comes twice: in one, and in two"):
        planned(tmp_path / "work", [item("b"), item("a"), item("b", source=1)])
    with pytest.raises(UsageError, match="comes twice: in two"):
        planned(tmp_path / "again", [item("b", source=1), item("b", 7, source=1)])


def test_a_key_may_be_empty_once(tmp_path: Path) -> None:
    assert planned(tmp_path / "work", [item("a"), item("")])[0].inputs == 2
    with pytest.raises(UsageError, match="the input '' comes twice: in one, and in two"):
        planned(tmp_path / "again", [item(""), item("", source=1)])


def test_no_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no inputs in one, two"):
        planned(tmp_path / "work", [])


def test_a_plan_survives_its_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path / "work", [item("a")])
    assert parse_plan(plan.render(), "x") == plan
    with pytest.raises(FormatError, match="x"):
        parse_plan(plan.render().replace('"inputs": 1', '"inputs": "many"'), "x")


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ([item("a"), item("b", 9), item("c")], "'b' has changed"),
        ([item("a"), item("c")], "'b' is missing"),
        ([item("a"), item("aa"), item("b"), item("c")], "'aa' is new"),
        ([item("a"), item("b"), item("c"), item("d")], "'d' is new"),
        ([item("a"), item("b")], "'c' is missing"),
        ([item("a"), item("b"), item("c")], ""),
    ],
)
def test_the_first_input_that_differs_is_named(new: list[Item], said: str, tmp_path: Path) -> None:
    _, before = planned(tmp_path / "old", [item("a"), item("b"), item("c")])
    _, after = planned(tmp_path / "new", new)
    assert first_difference(before, after) == said


def test_what_differs_between_plans_is_told(tmp_path: Path) -> None:
    old, _ = planned(tmp_path / "old", [item("a")])
    other = Settings("m:2.0", "b" * 64, shard_rows=3, batch_size=2, threads=1, reply="json")
    new, _ = planned(tmp_path / "new", [item("a"), item("b")], other)
    found = differences(old, new)
    assert found[:2] == ["model: m:1.0, and now m:2.0", f"archive: {'a' * 64}, and now {'b' * 64}"]
    assert found[2].startswith("inputs: 1 with the digest ")
    assert differences(old, old) == []
