from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marsmith.errors import ExportError, UsageError
from marsmith.export import ImagePreprocessing
from marsmith.export.crops import CALIBRATION_SEED, VALIDATION_SEED, centre_crops, random_crops
from marsmith.export.images import ENOUGH_TO_HOLD_OUT, digests, find_images, image_sets, read_labels

PREPROCESSING = ImagePreprocessing(resize=32, crop=(24, 16))


def _photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_files_folders_globs_and_packages_name_images_each_once_in_order(tmp_path: Path) -> None:
    _photos(tmp_path / "a", 3)
    found = find_images(["a/02.png", "a", "a/*.png", "package:skimage/data/c[ho]*ee.png"], tmp_path)
    assert [path.name for path in found] == ["02.png", "00.png", "01.png", "coffee.png"]


@pytest.mark.parametrize("reference", ["none.png", "*.png", "package:nowhere/x*.png", "package:skimage/../*.png"])
def test_a_name_that_leads_to_nothing_is_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(UsageError, match=r"no such file|matches no image|does not name files"):
        find_images([reference], tmp_path)


def test_enough_photos_are_split_so_that_none_is_in_both(tmp_path: Path) -> None:
    _photos(tmp_path / "many", ENOUGH_TO_HOLD_OUT)
    sets = image_sets([], ["many"], [], tmp_path)
    assert sets.held_out == "images"
    assert not set(sets.calibration) & set(sets.validation)
    assert len(sets.calibration) + len(sets.validation) == ENOUGH_TO_HOLD_OUT


def test_a_validation_image_with_the_content_of_a_calibration_image_is_left_out(tmp_path: Path) -> None:
    _photos(tmp_path / "few", 3)
    (tmp_path / "copy.png").write_bytes((tmp_path / "few" / "00.png").read_bytes())
    sets = image_sets([], ["few/00.png", "few/01.png"], ["copy.png", "few/02.png"], tmp_path)
    assert [path.name for path in sets.validation] == ["02.png"]
    assert sets.held_out == "images"


def test_too_few_photos_are_held_out_by_crops_that_differ(tmp_path: Path) -> None:
    _photos(tmp_path / "few", 2)
    sets = image_sets([], ["few"], [], tmp_path)
    assert (sets.calibration, sets.held_out) == (sets.validation, "crops")
    photos = [path.read_bytes() for path in sets.calibration]
    ours = random_crops(photos, PREPROCESSING, count=6, seed=CALIBRATION_SEED)
    theirs = random_crops(photos, PREPROCESSING, count=6, seed=VALIDATION_SEED)
    assert not any(torch.equal(a, b) for a in ours for b in theirs)


def test_the_same_arguments_give_the_same_crops_of_the_size_that_the_model_takes(tmp_path: Path) -> None:
    photos = [path.read_bytes() for path in sorted(_photos(tmp_path / "p", 2).glob("*.png"))]
    first, second = (random_crops(photos, PREPROCESSING, count=5, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert {tuple(crop.shape) for crop in [*first, *centre_crops(photos, PREPROCESSING)]} == {(3, 24, 16)}
    assert random_crops([], PREPROCESSING, count=5, seed=1) == []


def test_a_lock_knows_images_by_name_and_content_in_their_order(tmp_path: Path) -> None:
    paths = sorted(_photos(tmp_path / "p", 2).glob("*.png"))
    assert digests(paths) != digests(paths[::-1])
    assert [entry["name"] for entry in digests(paths)] == ["00.png", "01.png"]


@pytest.mark.parametrize("text", ["[]", '{"a.png": 1.5}', '{"a.png": true}', "{"])
def test_labels_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ExportError, match=r"validation_labels: .*labels\.json"):
        read_labels(tmp_path / "labels.json")
    (tmp_path / "labels.json").write_text(json.dumps({"a.png": 3, "b.png": "cat"}))
    assert read_labels(tmp_path / "labels.json") == {"a.png": 3, "b.png": "cat"}
