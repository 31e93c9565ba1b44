"""A sampled log of predictions, as JSON lines of bounded size, for drift detection and comparisons of versions.

Fields: ``time`` (seconds since the epoch), ``request_id``, ``model``, ``version``, ``status``, ``input_sha256``,
``input_bytes``, ``items`` (summary statistics of each decoded item), ``reply``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marsmith_handler.batch import Slot
from marsmith_handler.devices import as_tensor
from marsmith_handler.replies import JSON_TYPE, Reply
from marsmith_handler.settings import PredictionLogSettings

logger = logging.getLogger(__name__)


class PredictionLog:
    """Appends records to a file that all workers of the machine may share."""

    def __init__(self, path: Path, sample: float, max_bytes: int) -> None:
        self.path = path
        self._sample = sample
        self._max_bytes = max_bytes
        self._complained = False

    @classmethod
    def of(cls, settings: PredictionLogSettings) -> PredictionLog:
        """Open the log of the settings.

        Raises:
            RuntimeError: the path is relative and the folder of TorchServe's logs is not known. A worker's own folder
                is the unpacked archive, which must not change.
        """
        path = Path(settings.path)
        if not path.is_absolute():
            folder = os.environ.get("LOG_LOCATION")
            if not folder:
                raise RuntimeError(
                    f"prediction_log.path {settings.path!r} is relative, and LOG_LOCATION does not say where "
                    "TorchServe's logs lie: write an absolute path"
                )
            path = Path(folder).resolve() / path
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, settings.sample, settings.max_bytes)

    def wants(self, request_id: str) -> bool:
        """Return whether to log a request. Its id decides, so two versions log the same of the same requests."""
        number = int.from_bytes(hashlib.sha256(request_id.encode("utf-8", "replace")).digest()[:8], "big")
        return number < self._sample * 2**64

    def write(self, record: dict[str, Any]) -> None:
        """Append a record. If the log cannot be written, a warning says so once; requests do not fail."""
        try:
            line = json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
            self._append(line)
        except (OSError, ValueError, TypeError) as error:
            if not self._complained:
                logger.warning("the prediction log cannot be written: %s", ascii(str(error)))
            self._complained = True

    def _append(self, line: bytes) -> None:
        # Opened again each time: another worker may have moved the file meanwhile.
        with self.path.with_name(self.path.name + ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            size = self.path.stat().st_size if self.path.exists() else 0
            if size and size + len(line) > self._max_bytes:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            with self.path.open("ab") as file:
                file.write(line)


def prediction_of(slot: Slot, reply: Reply, model: str, version: str) -> dict[str, Any]:
    """Describe one answered request."""
    digest, size = digest_of(slot.fields)
    return {
        "time": round(time.time(), 3),
        "request_id": slot.request_id,
        "model": model,
        "version": version,
        "status": reply.status,
        "input_sha256": digest,
        "input_bytes": size,
        "items": [summary_of(item) for item in slot.items],
        "reply": json.loads(reply.body) if reply.content_type == JSON_TYPE else None,
    }


def digest_of(fields: Mapping[str, Any]) -> tuple[str, int]:
    """Return SHA-256 and size of a request: of its bytes, or of canonical JSON if TorchServe has parsed it."""
    digest, size = hashlib.sha256(), 0
    for value in fields.values():
        body = value if isinstance(value, bytes | bytearray) else _as_bytes(value)
        digest.update(body)
        size += len(body)
    return digest.hexdigest(), size


def summary_of(item: Any) -> dict[str, Any]:
    """Return shape, mean and standard deviation of a tensor or numpy array of numbers; empty for anything else."""
    import torch

    if isinstance(item, np.ndarray) and item.dtype.kind in "biuf":
        item = as_tensor(item)
    if not isinstance(item, torch.Tensor) or item.numel() == 0:
        return {}
    deviation, mean = torch.std_mean(item.to(torch.float32), correction=0)
    return {"shape": list(item.shape), "mean": round(float(mean), 6), "std": round(float(deviation), 6)}


def _as_bytes(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text.encode("utf-8", "backslashreplace")
