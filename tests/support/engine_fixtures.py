"""A small classifier, its forms on disk, and unpacked archives around them."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from marsmith.config.form import Form
from marsmith.export import ImagePreprocessing
from marsmith.export.image_graph import ImageGraph
from marsmith.export.serialize import Files, serialize
from support.handler_fixtures import write_manifest
from support.projects import REPOSITORY
from support.vision_fixtures import photo, wake

_KEPT = TemporaryDirectory(prefix="marsmith-tests-")
SIDE = 48
LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
NO_MODEL: Mapping[str, Any] = {}
PREPROCESSING = ImagePreprocessing(resize=SIDE, crop=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)


def small_graph() -> ImageGraph:
    """A network with what engines fold and fuse: padding, batch norms, ReLU6, groups, a residual."""
    torch.manual_seed(11)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU6(),
        Residual(16),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU6(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, len(LABELS)),
    )
    wake(network)
    return ImageGraph(network, PREPROCESSING).eval()


class Residual(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = torch.nn.BatchNorm2d(channels)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.relu(self.norm(self.depthwise(values)))


def pictures(count: int, side: int = SIDE) -> list[torch.Tensor]:
    """uint8 (3, side, side), all different."""
    bodies = [photo(seed, (side, side)) for seed in range(count)]
    return [torch.from_numpy(np.array(Image.open(BytesIO(body)))).permute(2, 0, 1).contiguous() for body in bodies]


def archive_folder(
    folder: Path, files: Files, labels: list[str] = LABELS, model: Mapping[str, Any] = NO_MODEL, **settings: Any
) -> Path:
    """An unpacked archive of a form, with our handler and all that it may import; ``model``: keys of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files.all:
        shutil.copy(path, folder)
    shutil.copytree(REPOSITORY / "handlers", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    manifest = write_manifest(folder, "image_classifier_handler.py", serializedFile=files.serialized_file.name, **model)
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", **manifest}), encoding="utf-8")
    (folder / "index_to_name.json").write_text(json.dumps(dict(enumerate(labels))), encoding="utf-8")
    return configure(folder, {"resize": SIDE, "crop": [SIDE, SIDE], "top_k": 3, **settings})


def configure(folder: Path, settings: Mapping[str, Any]) -> Path:
    config = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 2,
        "maxBatchDelay": 1,
        "responseTimeout": 60,
        "startupTimeout": 280,
        "handler": {"warm_up_s": 0.1, **settings},
    }
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


@cache
def small_pt2() -> Files:
    """The small classifier as ``.pt2``, compiled once a process: that takes as long as all other forms together."""
    folder = Path(_KEPT.name)
    form = Form.parse("pt2/float32/aot_inductor")
    return serialize(small_graph(), form, images=pictures(3), folder=folder)


def packed(folder: Path, target: Path) -> Path:
    """Pack an unpacked archive."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return target
