"""``marsmith batch`` with handlers that we ship, in process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import skimage

from marsmith.cli import main
from support.batches import parts_of, rows_of
from support.long_tests import long
from support.pictures import picture

pytestmark = pytest.mark.tensors

PHOTOS = Path(skimage.__file__).parent / "data"
# Those whose classes the archive's own examples prove.
EXPECTED = {"chelsea.png": "tiger cat", "coffee.png": "espresso", "rocket.jpg": "missile"}


def test_the_default_model_answers_photos_and_refuses_what_is_none(
    default_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in EXPECTED:
        shutil.copy(PHOTOS / name, "in")
    Path("in/cut.jpg").write_bytes((PHOTOS / "rocket.jpg").read_bytes()[:2000])
    Path("in/noise.png").write_bytes(os.urandom(1000))
    assert main(["batch", str(default_archive), "in", "--to", "to", "--shard-rows", "2", "--workers", "1"]) == 3
    rows = {row["key"].removeprefix("in/"): row for row in rows_of(tmp_path / "to")}
    assert {name: row["label"] for name, row in rows.items() if row["status"] == 200} == EXPECTED
    assert (rows["noise.png"]["status"], rows["cut.jpg"]["status"]) == (415, 400)
    assert "none of JPEG, PNG" in rows["noise.png"]["error"]
    best = rows["coffee.png"]
    assert best["probability"] == best["probabilities"][0] == pytest.approx(0.9496, abs=0.05)
    assert (len(best["labels"]), best["reply"]) == (5, None)


@long("batch")
def test_of_a_thousand_inputs_300_bad_ones_are_explained_and_700_are_right(
    default_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    whole = (PHOTOS / "rocket.jpg").read_bytes()
    bad = [whole[:3000], b"", os.urandom(500), b"GIF89a", picture(1, 2, 3)[:40]]
    for number in range(1000):
        good = PHOTOS / list(EXPECTED)[number % 3]
        content = bad[number % 5] if number % 10 < 3 else good.read_bytes()
        Path(f"in/{number:04}").write_bytes(content)
    for to, workers in (("to", "2"), ("again", "1")):
        assert main(["batch", str(default_archive), "in", "--to", to, "--shard-rows", "50", "--workers", workers]) == 3
    rows = rows_of(tmp_path / "to")
    assert [row["key"] for row in rows] == [f"in/{number:04}" for number in range(1000)]
    for number, row in enumerate(rows):
        if number % 10 < 3:
            assert 400 <= row["status"] < 500, row
            assert row["error"], row
        else:
            assert (row["status"], row["label"]) == (200, list(EXPECTED.values())[number % 3])
    assert parts_of(tmp_path / "again") == parts_of(tmp_path / "to")
