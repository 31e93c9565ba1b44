from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.handler_fixtures import Worker, write_manifest, write_model
from support.vision_fixtures import photo, wake

HANDLER = "image_segmenter_handler.py"


def segmenter() -> torch.nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(5)
    model: torch.nn.Module = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    wake(model)
    return model


class Brightness(torch.nn.Module):
    """Logits as a bare tensor: class 1 where the red channel is above its mean, class 0 elsewhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([-images[:, 0], images[:, 0]], dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter") / "model"
    write_model(folder, segmenter())
    write_manifest(folder, HANDLER)
    return configure(folder)


def configure(folder: Path, **handler: Any) -> Path:
    (folder / "model-config.yaml").write_text(
        json.dumps({"minWorkers": 1, "handler": {"warm_up_s": 0.01, **handler}}), encoding="utf-8"
    )
    return folder


def test_the_stock_handler_answers_the_same_on_the_same_serialized_file(folder: Path) -> None:
    from ts.torch_handler.image_segmenter import ImageSegmenter

    from marsmith.runtime.fake_context import FakeContext

    bodies = [photo(1, (300, 260)), photo(2, (256, 400))]
    stock = ImageSegmenter()
    stock.initialize(FakeContext(folder))
    with torch.inference_mode():
        wanted = stock.postprocess(stock.inference(stock.preprocess([{"body": bytearray(body)} for body in bodies])))
    replies = Worker(configure(folder), HANDLER).send(*bodies)
    for reply, pixels in zip(replies, wanted, strict=True):
        ours, theirs = np.array(reply.json()), np.array(pixels)
        assert ours.shape == theirs.shape == (224, 224, 2)
        assert len(np.unique(theirs[..., 0])) > 1, "one class everywhere proves nothing"
        # Resizing differs by one step of 255 here and there, and so do pixels that lie between two classes.
        assert (ours[..., 0] == theirs[..., 0]).mean() > 0.995
        assert np.abs(ours[..., 1] - theirs[..., 1]).mean() < 1e-3


def test_npy_holds_the_same_numbers_as_json(folder: Path) -> None:
    worker = Worker(configure(folder, resize=64, crop=[32, 48]), HANDLER)
    body = photo(3, (100, 80))
    (as_list,) = worker.send(body)
    (as_npy,) = worker.send(body, headers={"Accept": "application/x-npy"})
    array = np.load(BytesIO(as_npy.body))
    assert (array.shape, array.dtype, as_npy.content_type) == ((32, 48, 2), np.float32, "application/x-npy")
    np.testing.assert_array_equal(array, np.array(as_list.json(), dtype=np.float32))
    assert len(as_npy.body) < len(as_list.body) / 2


@pytest.fixture
def brightness(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_model(folder, Brightness())
    write_manifest(folder, HANDLER)
    return configure(folder, resize=8, crop=[8, 8])


def halves() -> bytes:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:, 0] = 255
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_each_pixel_has_its_class_and_its_probability(brightness: Path) -> None:
    (reply,) = Worker(brightness, HANDLER).send(halves())
    pixels = np.array(reply.json())
    assert (pixels[:, :4, 0] == 0).all()
    assert (pixels[:, 4:, 0] == 1).all()
    value = (1 - 0.485) / 0.229
    assert pixels[0, 7, 1] == pytest.approx(1 / (1 + np.exp(-2 * value)), abs=1e-6)


def test_mean_and_std_come_from_the_settings(brightness: Path) -> None:
    configure(brightness, resize=8, crop=[8, 8], mean=[1, 0, 0], std=[2, 1, 1])
    (reply,) = Worker(brightness, HANDLER).send(halves())
    assert np.array(reply.json())[0, 0].tolist() == pytest.approx([0, 1 / (1 + np.exp(-1))], abs=1e-6)
    configure(brightness, mean=[1, 2])
    with pytest.raises(RuntimeError, match=r"mean is .* not three numbers"):
        Worker(brightness, HANDLER)


def test_bad_images_get_their_own_4xx_and_their_neighbours_their_pixels(brightness: Path) -> None:
    worker = Worker(brightness, HANDLER)
    good = [photo(1, (30, 20)), photo(2, (20, 60))]
    alone = [reply.body for reply in worker.send(*good)]
    bad = [good[0][: len(good[0]) // 2], b"PK\x03\x04", b"", (b'{"data": {"b64": 5}}', "application/json")]
    replies = worker.send(good[0], *bad, good[1])
    assert [reply.status for reply in replies] == [200, 400, 415, 400, 400, 200]
    assert [replies[0].body, replies[-1].body] == alone
    assert all(reply.json()["request_id"] for reply in replies[1:-1])


def test_a_reply_over_the_limit_is_refused_before_the_frontend_kills_the_worker(brightness: Path) -> None:
    configure(brightness, resize=8, crop=[8, 8], max_response_bytes=1000)
    (reply,) = Worker(brightness, HANDLER).send(halves())
    assert reply.status == 500
    assert "max_response_bytes" in reply.json()["message"]
