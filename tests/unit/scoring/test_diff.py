"""``marsmith batch diff``: how far two batches agree, as text, JSON and a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsmith.cli import main
from marsmith.scoring import parts
from marsmith.scoring.destination import open_destination
from marsmith.scoring.items import Item
from marsmith.scoring.plan import Settings, make_plan
from marsmith.scoring.rows import Row

SETTINGS = Settings("pets:1.0", "a" * 64, shard_rows=3, batch_size=2, threads=1, reply="classes")
CAT, DOG = {"cat": 0.75, "dog": 0.25}, {"cat": 0.25, "dog": 0.75}


def write_batch(folder: Path, replies: dict[str, object]) -> Path:
    """Write a finished batch with these replies by key; a number is a status."""
    work = folder.with_suffix(".work")
    work.mkdir()
    items = [Item(key, 1, "m1", "", 0) for key in replies]
    plan, _ = make_plan(items, ["in"], SETTINGS, work)
    rows = [
        Row(key, reply, error="bad") if isinstance(reply, int) else Row(key, 200, json.dumps(reply).encode())
        for key, reply in sorted(replies.items())
    ]
    with open_destination(str(folder)) as to:
        records = []
        for shard in range(plan.shards):
            content = parts.encode_part(rows[3 * shard : 3 * shard + 3], plan)
            to.create(parts.part_name(shard), content)
            records.append(parts.read_part(parts.part_name(shard), content, plan, "x"))
        to.create(parts.SUCCESS, parts.success_of(plan, records).render().encode())
    return folder


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    same = {f"k{number}": CAT for number in range(8)}
    near = {"cat": 0.74, "dog": 0.26}
    write_batch(Path("old"), {**same, "flip": CAT, "near": CAT, "bad": 415, "only old": CAT, "worse": CAT})
    write_batch(Path("new"), {**same, "flip": DOG, "near": near, "bad": 415, "worse": 500})


def test_agreement_flips_and_the_largest_differences_are_shown(two: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "diff", "old", "new", "--html", "page.html"]) == 0
    shown = capsys.readouterr().out
    assert "12 inputs" in shown
    assert "90.00% of 10" in shown
    assert "0 only on old (pets:1.0), 1 only on new (pets:1.0), 1 on both" in shown
    assert "1 of old (pets:1.0), 0 of new (pets:1.0)" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["cat", "dog", "1"] in lines
    assert lines[-2:] == [
        ["0.5", "flip", "cat", "0.7500", "dog", "0.7500"],
        ["0.01", "near", "cat", "0.7500", "cat", "0.7400"],
    ]
    page = Path("page.html").read_text()
    assert "Flips by class" in page
    assert "<td>flip</td><td>cat 0.7500</td><td>dog 0.7500</td>" in page


def test_the_comparison_is_json_too(two: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "diff", "old", "new", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["agreement"]["rate"], found["largest"]) == (12, 0.9, 0.5)
    assert [each["key"] for each in found["largest_differences"]] == ["flip", "near"]


def test_the_tolerance_decides(two: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "diff", "old", "new", "--probability", "0.001"]) == 0
    assert "80.00% of 10" in capsys.readouterr().out


def test_what_is_no_finished_batch_is_refused(two: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "diff", "old"]) == 2
    assert main(["batch", "diff", "old", "old/"]) == 2
    assert main(["batch", "diff", "old", "nowhere"]) == 1
    assert "nowhere has no _SUCCESS" in capsys.readouterr().err
    write_batch(Path("apart"), {"another": CAT})
    assert main(["batch", "diff", "old", "apart"]) == 1
    assert "old and apart have no key in common" in capsys.readouterr().err
    Path("new/part-0000001.parquet").write_bytes(b"other")
    assert main(["batch", "diff", "old", "new"]) == 1
    assert "new/part-0000001.parquet is not the one of _SUCCESS" in capsys.readouterr().err
