"""Small archives, as folders, for the tests of the runner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

# Does what the header X-Do says, and otherwise echoes what the handler got.
ECHO_HANDLER = """
import os
import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

SHOWN = ("content-type", "content-length", "x-", "explain", "url_path")


def show(value):
    return [type(value).__name__, bytes(value).hex() if isinstance(value, (bytes, bytearray)) else value]


def headers_of(context, i):
    headers = sorted(context.get_all_request_header(i).items())
    return {k: v for k, v in headers if isinstance(v, dict) or k.lower().startswith(SHOWN)}


def echo(fields, context, i):
    return {"data": {k: show(v) for k, v in fields.items()}, "headers": headers_of(context, i)}


def stream(context):
    for part in ("part one ", "part two "):
        send_intermediate_predict_response([part], context.request_ids, "Intermediate", 200, context)
    return "the end"


def do(what, fields, context, i):
    if what == "raise":
        raise ValueError("bad thing")
    if what == "memory":
        raise MemoryError("no more")
    if what == "cuda":
        raise RuntimeError("CUDA error: out of memory")
    if what == "prediction":
        raise PredictionException("own words & <more>", 418)
    if what == "exit":
        os._exit(3)
    if what == "killed":
        os.kill(os.getpid(), 9)
    if what == "sleep":
        import time
        time.sleep(30)
    if what == "status":
        context.set_response_status(422, "Unprocessable", i)
    if what == "headers":
        context.set_response_header(i, "X-Mine", "seven")
        context.set_response_content_type(i, "text/plain; charset=utf-8")
    if what == "non-ascii type":
        context.set_response_content_type(i, "text/plain; title=\\u00e9")
    if what == "stream":
        return stream(context)
    if what == "tensor":
        # Here only: a worker that imports torch at its first use is late with its answer then.
        return torch.arange(6).reshape(2, 3)
    replies = {
        "unserialisable": {"a": object()},
        "keys": {1: (1, 2.5, None, float("nan"), "\\u00e9")},
        "bytes": bytes(range(256)),
        "bytearray": bytearray(b"\\x00\\xff"),
        "empty": "",
        "none": None,
        "text": "\\u00fcn\\u00efcode",
        "number": 3.25,
        "too large": b"x" * 6553501,
        "just fits": b"x" * 6553500,
    }
    return replies[what] if what in replies else echo(fields, context, i)


def handle(data, context):
    if data is None:
        return
    orders = [context.get_request_header(i, "X-Do") for i in range(len(data))]
    if "wrong length" in orders:
        return [1, 2, 3]
    if "wrong type" in orders:
        return {"a": 1}
    return [do(what, fields, context, i) for i, (what, fields) in enumerate(zip(orders, data))]
"""

CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 1\nresponseTimeout: 60\nstartupTimeout: 60\n"


def make_archive(
    folder: Path,
    handler: str = ECHO_HANDLER,
    *,
    entry_point: str = "tiny_handler.py",
    config: str = CONFIG,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Lay an archive out in ``folder``: this handler, this model config, and further files by name."""
    model = {"modelName": "tiny", "modelVersion": "1.0", "handler": entry_point, "configFile": "model-config.yaml"}
    members: dict[str, str | bytes] = {
        "MAR-INF/MANIFEST.json": json.dumps({"runtime": "python", "model": model}),
        "model-config.yaml": config,
        "tiny_handler.py": handler,
        **(files or {}),
    }
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
