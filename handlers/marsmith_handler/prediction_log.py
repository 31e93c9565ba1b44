"""A sampled log of predictions, as JSON lines of bounded size, for drift detection and comparisons of versions.

Fields of a line, schema 3:

==================  ==================================================================================================
``schema``          3
``time``            of the reply, in seconds since the epoch
``key``             the same for the same request at all versions; see ``key_of``
``key_from``        ``x-request-id``, ``id`` (of the Open Inference Protocol) or ``input``
``request_id``      TorchServe's own
``model``           and ``version``, as in the manifest
``shadow``          whether the request is a copy, whose reply nobody waits for
``status``          of the reply
``handler_ms``      time of the handler for the batch that held the request; ``batch`` is the number of requests in it
``input_sha256``    and ``input_bytes``: of the body; of canonical JSON where TorchServe has parsed it
``items``           shape, mean and standard deviation of each decoded item
``watched``         what drift is watched by, numbers and classes by name, of each item that was answered; see
                    ``BaseHandler.watch``
``request``         the fields of the request, bytes as ``{"b64": ...}``, if the setting ``bodies`` asks for them and
                    they have at most ``LARGEST_REQUEST`` bytes; else null
``reply``           the reply, if it is JSON of at most ``LARGEST_REPLY`` bytes; else null
``reply_sha256``    and ``reply_bytes``: of the reply
``worker``          pid of the worker; ``dropped``: lines that it has dropped until then, because too many waited
==================  ==================================================================================================
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marsmith_handler.batch import Slot
from marsmith_handler.log_files import DAY_S, HOUR_S, Rotation
from marsmith_handler.log_writer import LogWriter
from marsmith_handler.marks import REQUEST_ID
from marsmith_handler.replies import JSON_TYPE, Reply
from marsmith_handler.request import Request
from marsmith_handler.settings import PredictionLogSettings
from marsmith_handler.watched import Watched, cleaned

logger = logging.getLogger(__name__)

# Changes a record before it is written; see ``BaseHandler.redact``.
Redact = Callable[[dict[str, Any]], Mapping[str, Any]]
# Describes an item by its request and its reply; see ``BaseHandler.watch``.
Watch = Callable[[Request, Any, Any], Mapping[str, Any]]

SCHEMA = 3
LARGEST_REPLY = 256 * 1024
LARGEST_REQUEST = 4 * 1024 * 1024


@dataclass(frozen=True)
class Served:
    """What served a batch: the version, and how.

    Attributes:
        model: name in the manifest.
        version: version in the manifest.
        handler_ms: time of the handler, in milliseconds.
        batch: number of requests in the batch.
    """

    model: str
    version: str
    handler_ms: float
    batch: int


class PredictionLog:
    """Decides which requests are logged, and hands them to the thread that writes; never makes a reply wait."""

    def __init__(
        self,
        sample: float,
        writer: LogWriter,
        redact: Redact | None = None,
        watch: Watch | None = None,
        bodies: bool = False,
    ) -> None:
        self._sample = sample
        self._writer = writer
        self._redact = redact
        self._watch = watch
        self._bodies = bodies
        self._complained = False

    @classmethod
    def of(
        cls,
        settings: PredictionLogSettings | None,
        model: str,
        redact: Redact | None = None,
        watch: Watch | None = None,
    ) -> PredictionLog | None:
        """Open the log that the settings name; without settings, the one that single requests may ask for.

        Args:
            settings: settings of the log.
            model: name of the model.
            redact: changes each record before it is written.
            watch: describes each item.

        Returns:
            None without settings if the folder of TorchServe's logs is not known.

        Raises:
            RuntimeError: the settings' path is relative, and the folder of TorchServe's logs is not known. A worker's
                own folder is the unpacked archive, which must not change.
        """
        folder = os.environ.get("LOG_LOCATION")
        if settings is None:
            if not folder or not model:
                return None
            settings = PredictionLogSettings(f"predictions/{model}.jsonl", sample=0.0)
        path = Path(settings.path)
        if not path.is_absolute():
            if not folder:
                raise RuntimeError(
                    f"prediction_log.path {settings.path!r} is relative, and LOG_LOCATION does not say where "
                    "TorchServe's logs lie: write an absolute path"
                )
            path = Path(folder).resolve() / path
        writer = LogWriter(path, _rotation(settings))
        return cls(settings.sample, writer, redact, watch, settings.bodies)

    def wants(self, slot: Slot) -> bool:
        """Decide by the request's key, so that two versions that get the same request log the same ones."""
        if slot.marks.log or self._sample >= 1:
            return True
        # The digest of a body costs time: no request pays for a log that samples nothing.
        return self._sample > 0 and is_sampled(key_of(slot)[0], self._sample)

    def add(self, slot: Slot, reply: Reply, served: Served) -> None:
        """Log a request that was answered, if it is wanted."""
        if slot.asks("describe") or not self.wants(slot):
            return
        now = time.time()

        def line(dropped: int) -> bytes:
            record = prediction_of(slot, reply, served, now)
            record |= {"watched": self._watched(slot), "request": fields_of(slot) if self._bodies else None}
            record |= {"worker": os.getpid(), "dropped": dropped}
            if self._redact is not None:
                record = dict(self._redact(record))
            return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"

        held = sum(len(value) for value in slot.fields.values() if isinstance(value, bytes | bytearray | str))
        self._writer.add(line, held + len(reply.body) + sum(int(getattr(item, "nbytes", 0)) for item in slot.items))

    def flush(self) -> None:
        """Wait until all lines are written."""
        self._writer.flush()

    def _watched(self, slot: Slot) -> list[Watched]:
        """Describe the items; without what cannot be described."""
        if self._watch is None or slot.failure is not None:
            return []
        try:
            given = zip(slot.requests, slot.items, slot.replies, strict=True)
            return [cleaned(self._watch(*each)) for each in given]
        except Exception as error:
            if not self._complained:
                logger.warning("requests cannot be described: %s", ascii(f"{type(error).__name__}: {error}"))
            self._complained = True
            return []


def _rotation(settings: PredictionLogSettings) -> Rotation:
    hours, days = settings.rotate_hours, settings.keep_days
    # A file that never ended would never be removed.
    age_s = min((each for each in (hours and hours * HOUR_S, days and days * DAY_S) if each), default=None)
    return Rotation(settings.max_bytes, settings.files, age_s, days and days * DAY_S)


def is_sampled(key: str, sample: float) -> bool:
    """Return whether a key belongs to a share (0 to 1) of all keys; a key of a share belongs to each larger share."""
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8], "big")
    return number < sample * 2**64


def key_of(slot: Slot) -> tuple[str, str]:
    """Return what is the same for a request at all versions, and where it is from.

    TorchServe's own id is not: it gives each copy of a request another one.
    """
    if slot.marks.request_id:
        return slot.marks.request_id, REQUEST_ID
    if slot.envelope is not None and slot.envelope.v2_id:
        return slot.envelope.v2_id, "id"
    return digest_of(slot.fields)[0], "input"


def prediction_of(slot: Slot, reply: Reply, served: Served, now: float) -> dict[str, Any]:
    """Describe one answered request; ``now`` is in seconds since the epoch."""
    digest, size = digest_of(slot.fields)
    key, source = key_of(slot)
    is_readable = reply.content_type == JSON_TYPE and len(reply.body) <= LARGEST_REPLY
    return {
        "schema": SCHEMA,
        "time": round(now, 3),
        "key": key,
        "key_from": source,
        "request_id": slot.request_id,
        "model": served.model,
        "version": served.version,
        "shadow": slot.marks.shadow,
        "status": reply.status,
        "handler_ms": round(served.handler_ms, 3),
        "batch": served.batch,
        "input_sha256": digest,
        "input_bytes": size,
        "items": [summary_of(item) for item in slot.items],
        "reply": json.loads(reply.body) if is_readable else None,
        "reply_sha256": hashlib.sha256(reply.body).hexdigest(),
        "reply_bytes": len(reply.body),
    }


def fields_of(slot: Slot) -> dict[str, Any] | None:
    """Return what a request held, as JSON; None if it is too large."""
    if digest_of(slot.fields)[1] > LARGEST_REQUEST:
        return None
    return {
        name: {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes | bytearray) else value
        for name, value in slot.fields.items()
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
    array = as_array(item)
    if array is None or array.dtype.kind not in "biuf" or array.size == 0:
        return {}
    # numpy: torch's threads belong to the model, and this runs beside it.
    mean, deviation = np.mean(array, dtype=np.float64), np.std(array, dtype=np.float64)
    return {"shape": list(array.shape), "mean": round(float(mean), 6), "std": round(float(deviation), 6)}


def as_array(item: Any) -> np.ndarray[Any, Any] | None:
    """Return a tensor or numpy array as an array; None for anything else."""
    if isinstance(item, np.ndarray):
        return item
    import torch

    if not isinstance(item, torch.Tensor):
        return None
    # numpy has no bfloat16.
    exact = item.detach().cpu()
    return (exact.float() if exact.dtype == torch.bfloat16 else exact).numpy()


def _as_bytes(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text.encode("utf-8", "backslashreplace")
