from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from marsmith_handler.image.decoding import decode_whole_image
from support.detectors import Corners, detector
from support.handler_fixtures import Worker, write_manifest, write_model
from support.vision_fixtures import photo

# torchvision's scripted detectors say once that they also return losses.
pytestmark = pytest.mark.filterwarnings("ignore:.*always returns a:UserWarning")

LABELS = {"0": "background", "1": "cat", "2": "dog", "3": "törst"}
HANDLER = "object_detector_handler.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector") / "model"
    write_model(folder, detector())
    write_manifest(folder, HANDLER)
    (folder / "index_to_name.json").write_text(json.dumps({**LABELS, "4": "bus"}), encoding="utf-8")
    configure(folder)
    return folder


def configure(folder: Path, **handler: Any) -> Path:
    config = {"minWorkers": 1, "handler": {"threshold": 0.5, "warm_up_s": 0.01, **handler}}
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def worker(folder: Path) -> Worker:
    return Worker(configure(folder), HANDLER)


def expected(body: bytes, threshold: float = 0.5) -> list[dict[str, Any]]:
    """What the eager module says, in the shape that TorchServe documents."""
    image = torch.from_numpy(np.array(Image.open(BytesIO(body)).convert("RGB"))).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (found,) = detector()([image])
    names = {**LABELS, "4": "bus"}
    rows = zip(found["labels"].tolist(), found["boxes"].tolist(), found["scores"].tolist(), strict=True)
    return [{names[str(label)]: box, "score": score} for label, box, score in rows if score >= threshold]


def assert_same(reply: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [list(one) for one in reply] == [list(one) for one in wanted]
    for one, other in zip(reply, wanted, strict=True):
        for name, value in one.items():
            assert value == pytest.approx(other[name], abs=1e-3), name


def test_boxes_of_images_of_different_sizes_in_one_batch_are_those_of_the_eager_module(worker: Worker) -> None:
    bodies = [photo(1, (200, 150)), photo(2, (90, 240)), photo(3, (320, 320))]
    replies = worker.send(*bodies)
    for body, reply in zip(bodies, replies, strict=True):
        assert reply.status == 200
        assert reply.json(), "a detector without boxes proves nothing"
        assert_same(reply.json(), expected(body))


def test_the_stock_handler_answers_the_same_on_the_same_weights(tmp_path: Path, folder: Path) -> None:
    """Stock stacks a batch into one tensor, which no scripted detector takes: it gets the weights as eager module."""
    from ts.torch_handler.object_detector import ObjectDetector

    from marsmith.runtime.fake_context import FakeContext

    model = "from torch import nn\nfrom support.detectors import detector\n\n\nclass Net(nn.Module):\n"
    model += "    def __init__(self):\n        super().__init__()\n        self.net = detector()\n\n"
    model += "    def forward(self, images):\n        return self.net(images)\n"
    (tmp_path / "eager_detector.py").write_text(model, encoding="utf-8")
    torch.save({f"net.{name}": value for name, value in detector().state_dict().items()}, tmp_path / "model.pth")
    (tmp_path / "index_to_name.json").write_bytes((folder / "index_to_name.json").read_bytes())
    manifest = {"model": {"modelName": "m", "modelFile": "eager_detector.py", "serializedFile": "model.pth"}}
    bodies = [photo(seed, (160, 120)) for seed in (4, 5)]
    stock = ObjectDetector()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        stock.initialize(FakeContext(tmp_path, manifest=manifest))
    with torch.inference_mode():
        wanted = stock.postprocess(stock.inference(stock.preprocess([{"body": bytearray(body)} for body in bodies])))
    replies = Worker(configure(folder), HANDLER).send(*bodies)
    for reply, boxes in zip(replies, wanted, strict=True):
        assert boxes
        assert_same(reply.json(), boxes)


@pytest.fixture
def corners(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_model(folder, Corners())
    write_manifest(folder, HANDLER)
    (folder / "index_to_name.json").write_text(json.dumps(LABELS), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({}, ["törst", "cat"]),
        ({"threshold": 0}, ["törst", "cat", "9"]),
        ({"threshold": 0.6, "labels": "none.json"}, ["3"]),
        ({"threshold": 0.9}, []),
    ],
)
def test_the_threshold_and_the_labels_come_from_the_settings(
    corners: Path, settings: dict[str, Any], labels: list[str]
) -> None:
    (reply,) = Worker(configure(corners, **settings), HANDLER).send(photo(1, (40, 30)))
    scores = [0.75, 0.5, 0.25]
    wanted = [{label: [0, 0, 40, 30], "score": score} for label, score in zip(labels, scores, strict=False)]
    assert (reply.status, reply.json()) == (200, wanted)


def test_bad_images_get_their_own_4xx_and_their_neighbours_their_boxes(worker: Worker) -> None:
    good = [photo(1, (200, 150)), photo(2, (90, 240))]
    alone = [reply.json() for reply in worker.send(*good)]
    bad = [good[0][: len(good[0]) // 2], b"<html></html>", b"", (b'{"data": 5}', "application/json"), b"[[1, 2]]"]
    replies = worker.send(good[0], *bad, good[1])
    assert [reply.status for reply in replies] == [200, 400, 415, 400, 415, 415, 200]
    for reply in replies[1:-1]:
        assert reply.content_type == "application/json"
        assert reply.json().keys() == {"code", "type", "message", "request_id"}
    for reply, boxes in zip((replies[0], replies[-1]), alone, strict=True):
        assert_same(reply.json(), boxes)


def test_a_photo_held_sideways_is_searched_upright(corners: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (reply,) = Worker(configure(corners), HANDLER).send(photo(6, (160, 100), "JPEG", exif=exif))
    assert reply.json()[0] == {"törst": [0, 0, 100, 160], "score": 0.75}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_those_of_pillow_in_every_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = photo(7, (37, 21), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(body))).convert("RGB")
    pixels = decode_whole_image(body)
    assert pixels.is_contiguous()
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(upright))


def test_an_image_with_too_many_pixels_is_413_and_several_in_json_are_answered_with_a_list(corners: Path) -> None:
    worker = Worker(configure(corners, max_image_pixels=2_000), HANDLER)
    small, large = (base64.b64encode(photo(1, size)).decode() for size in ((40, 30), (80, 60)))
    inputs = [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [small]}]
    several, refused, v2 = worker.send(
        json.dumps([{"b64": small}, {"b64": small}]).encode(),
        json.dumps({"instances": [{"b64": small}, {"b64": large}]}).encode(),
        json.dumps({"inputs": inputs}).encode(),
    )
    assert refused.status == 413
    assert refused.json()["message"].startswith("item 2 of 2: ")
    first, second = several.json()
    assert first == second == v2.json()["outputs"][0]["data"][0]
    assert len(first) == 2
