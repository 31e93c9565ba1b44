"""Unpacked archives made of small models, and TorchServe's own Python side to answer with them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

CLASSES = ["red", "green", "blue"]


class ChannelMeans(torch.nn.Module):
    """uint8 (N, 3, H, W) to probabilities (N, 3): how much of the picture is red, green, blue."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(images.to(torch.float32).mean(dim=(2, 3)) / 64.0, dim=1)


class Doubling(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * 2


def write_model(folder: Path, module: torch.nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(folder / "model.pt"))


def write_manifest(folder: Path, handler: str, **model: Any) -> dict[str, Any]:
    manifest = {
        "model": {
            "modelName": "tiny",
            "modelVersion": "1.0",
            "serializedFile": "model.pt",
            "handler": handler,
            "configFile": "model-config.yaml",
            **model,
        }
    }
    (folder / "MAR-INF").mkdir(parents=True, exist_ok=True)
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    return manifest


def classifier_folder(folder: Path, **settings: Any) -> Path:
    """An unpacked archive of a classifier that tells the colour of a picture."""
    write_model(folder, ChannelMeans())
    write_manifest(folder, "image_classifier_handler.py")
    (folder / "index_to_name.json").write_text(json.dumps(dict(enumerate(CLASSES))), encoding="utf-8")
    handler = {"resize": 16, "crop": [16, 16], "interpolation": "bilinear", "top_k": 5, **settings}
    config = {"minWorkers": 1, "maxWorkers": 1, "handler": handler}
    # JSON is YAML.
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_examples(folder: Path, examples: list[dict[str, Any]], files: dict[str, bytes]) -> None:
    target = folder / "MAR-INF" / "examples"
    target.mkdir(parents=True, exist_ok=True)
    (target / "examples.json").write_text(json.dumps(examples), encoding="utf-8")
    for name, body in files.items():
        (target / name).write_bytes(body)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over everything that lies there."""
    sums = folder / "MAR-INF" / "SHA256SUMS"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != sums)
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}" for file in files
    ]
    sums.write_text("\n".join(lines) + "\n", encoding="utf-8")


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "model-config.yaml").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class WireReply:
    """One reply, read back from what TorchServe's worker would send to its frontend."""

    request_id: str
    content_type: str
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def read_wire(message: bytes) -> tuple[int, list[WireReply]]:
    """Read a worker's response as the frontend does: the code of the batch, and the replies."""
    stream = BytesIO(message)

    def number() -> int:
        return int(struct.unpack("!i", stream.read(4))[0])

    def text() -> str:
        return stream.read(number()).decode("utf-8")

    code, _ = number(), text()
    replies = []
    while (length := number()) != -1:
        request_id = stream.read(length).decode()
        content_type, status, phrase = text(), number(), text()
        headers = {text(): text() for _ in range(number())}
        replies.append(WireReply(request_id, content_type, status, phrase, headers, stream.read(number())))
    assert not stream.read()
    return code, replies


class Worker:
    """TorchServe's worker without its socket: its loader, service, context, metrics cache and wire format."""

    def __init__(self, folder: Path, handler: str, *, batch_size: int = 4, metrics_file: Path | None = None) -> None:
        if metrics_file is None:
            metrics_file = folder.parent / "metrics.yaml"
            metrics_file.write_text(json.dumps({"model_metrics": {"gauge": []}}), encoding="utf-8")
        with warnings.catch_warnings():
            # TorchServe leaves the closing of files to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
            from ts.model_loader import TsModelLoader

            cache = MetricsCacheYamlImpl(str(metrics_file))
        # An empty section is refused by TorchServe; an empty cache is what it would make of one.
        if json.loads(metrics_file.read_text(encoding="utf-8"))["model_metrics"]:
            cache.initialize_cache()
        cache.model_name = "tiny"
        self.service = TsModelLoader().load("tiny", str(folder), handler, None, batch_size, None, True, cache)
        self.service.set_cl_socket(None)

    def send(self, *requests: Any, headers: dict[str, str] | None = None) -> list[WireReply]:
        """Send one batch; a request is bytes, or (bytes, content type), or a list of (field, content type, value)."""
        return self.send_batch([self._encoded(i, request, headers) for i, request in enumerate(requests)])

    def send_batch(self, batch: list[dict[str, Any]]) -> list[WireReply]:
        code, replies = read_wire(bytes(self.service.predict(batch)))
        assert code == 200, f"the whole batch failed with {code}"
        return replies

    @staticmethod
    def _encoded(index: int, request: Any, headers: dict[str, str] | None) -> dict[str, Any]:
        parts = request if isinstance(request, list) else [("body", *_typed(request))]
        return {
            "requestId": f"id-{index}".encode(),
            "headers": [{"name": k.encode(), "value": v.encode()} for k, v in (headers or {}).items()],
            "parameters": [
                {"name": name, "contentType": kind, "value": _received(kind, value)} for name, kind, value in parts
            ],
        }


def _typed(request: Any) -> tuple[str, bytes]:
    return (request[1], request[0]) if isinstance(request, tuple) else ("", request)


def _received(kind: str, value: bytes) -> Any:
    """Decode a part as ``ts.protocol.otf_message_handler`` does."""
    if os.environ.get("TS_DECODE_INPUT_REQUEST", "true") != "true":
        return bytearray(value)
    try:
        if kind == "application/json":
            return json.loads(value.decode("utf-8"))
        if kind.startswith("text"):
            return value.decode("utf-8")
    except ValueError:
        pass
    return bytearray(value)


def npy(array: Any) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()
