"""What every peer runs: the archive's own handler, in the archive's own engine; only the server around it differs."""

from __future__ import annotations

import base64
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "PEER_SETTINGS"


@dataclass(frozen=True)
class PeerSettings:
    """How a peer is set up.

    Attributes:
        folder: the unpacked archive.
        port: on 127.0.0.1.
        workers: processes with a model.
        threads: of each, within one operation.
        batch_size: largest batch; 1: the framework forms none.
        timeout_ms: how long it waits for a batch to fill, in milliseconds; BentoML: its bound on the whole latency.
        payload: ``raw``, ``multipart`` or ``json`` (base64).
        option: one further setting; what it means is said where it is used.
    """

    folder: str
    port: int
    workers: int
    threads: int
    batch_size: int = 1
    timeout_ms: float = 0.0
    payload: str = "raw"
    option: str = ""

    def variables(self) -> dict[str, str]:
        """Return the environment that carries these settings, and sets threads where libraries look for them."""
        threads = str(self.threads)
        return {VARIABLE: json.dumps(asdict(self)), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def read_settings() -> PeerSettings:
    """Return the settings of this process."""
    return PeerSettings(**json.loads(os.environ[VARIABLE]))


class PeerModel:
    """The archive's handler, taken apart into what a framework calls."""

    def __init__(self, settings: PeerSettings) -> None:
        """Load it as TorchServe's worker does: with its proof of digests and examples, and its warm-up."""
        # torch deprecates TorchScript, in the log of every worker.
        warnings.simplefilter("ignore")
        from in_process import load_handler

        self._handler, self._decode_image = load_handler(Path(settings.folder), settings.threads, settings.batch_size)
        from marsmith_handler.request import Request

        self._request = Request(b"")

    def decode(self, bodies: Sequence[bytes]) -> list[Any]:
        """Decode photos to uint8 tensors (3, H, W), in the handler's threads where it has some."""
        run = self._handler._pool.map if self._handler._pool and len(bodies) > 1 else map
        return list(run(self._decode_one, bodies))

    def infer(self, items: list[Any]) -> list[Any]:
        """Run a batch through the model."""
        import torch

        with torch.inference_mode():
            return list(self._handler.infer(items))

    def encode(self, result: Any) -> dict[str, float]:
        """Return ``{label: probability}``, best first."""
        reply: dict[str, float] = self._handler.encode(result, self._request)
        return reply

    def classify(self, bodies: Sequence[bytes]) -> list[dict[str, float]]:
        """Do all of it for a batch of photos."""
        return [self.encode(result) for result in self.infer(self.decode(bodies))]

    def _decode_one(self, body: bytes) -> Any:
        import torch

        with torch.inference_mode():
            return self._decode_image(body, **self._handler.decoding)


def from_base64(text: str) -> bytes:
    """Take a photo out of JSON."""
    return base64.b64decode(text)
