"""Voice activity: a request is a sound, a reply lists the spans of speech in it.

The serialized file is silero-vad's ``silero_vad.jit``, unchanged: its ``audio_forward`` takes float32 sounds
(N, samples) at 16,000 samples per second. It gives the probability of speech for each window of 512 samples, float32
(N, windows).
Settings, in the block ``handler`` of model-config.yaml: ``threshold`` (minimum probability of speech),
``max_duration_s`` (of a sound), ``max_request_duration_s`` (of all sounds of a request).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from marsmith_handler.audio.decoding import decode_wav, duration_s
from marsmith_handler.audio.speech_spans import RATE, WINDOW, speech_spans
from marsmith_handler.base import BaseHandler
from marsmith_handler.errors import ItemError
from marsmith_handler.request import Request, check_total

MAX_REQUEST_DURATION_S = 300.0


class VoiceActivityHandler(BaseHandler):
    """Finds speech in WAV files: raw, in a form, as base64 in JSON, one or several in a request."""

    def load(self) -> None:
        """Load the model and the settings."""
        super().load()
        self.threshold = float(self.config.get("threshold", 0.5))
        self.max_duration_s = float(self.config.get("max_duration_s", 60))
        most = max(MAX_REQUEST_DURATION_S, self.max_duration_s)
        self.max_request_duration_s = float(self.config.get("max_request_duration_s", most))

    def warm_up_item(self) -> torch.Tensor:
        """Return a second of silence."""
        return torch.zeros(RATE)

    def check_together(self, requests: Sequence[Request]) -> None:
        """Refuse sounds that are too long together."""
        durations = (self._duration_s(request) for request in requests)
        check_total(durations, self.max_request_duration_s, "seconds of sound", "max_request_duration_s")

    def decode(self, request: Request) -> torch.Tensor:
        """Decode a sound to float32 (samples,)."""
        return decode_wav(request.as_bytes(), rate=RATE, max_duration_s=self.max_duration_s)

    def infer(self, items: list[torch.Tensor]) -> list[dict[str, Any]]:
        """Return of each sound its number of samples, and the probability of speech in each of its windows."""
        # The model reads a sound from its beginning: padding with silence at the end changes no earlier result.
        sounds = pad_sequence(items, batch_first=True)
        sounds = torch.nn.functional.pad(sounds, (0, -sounds.shape[1] % WINDOW)).to(self.device)
        rows = self.model.audio_forward(sounds, RATE).cpu()
        lengths = [len(item) for item in items]
        return [
            {"samples": length, "probabilities": row[: -(-length // WINDOW)].tolist()}
            for length, row in zip(lengths, rows, strict=True)
        ]

    def encode(self, result: dict[str, Any], request: Request) -> dict[str, Any]:  # noqa: ARG002
        """Return the length, the highest probability of speech, and the spans of speech, in seconds."""
        spans = speech_spans(result["probabilities"], result["samples"], self.threshold)
        return {
            "duration_s": round(result["samples"] / RATE, 3),
            "probability": max(result["probabilities"]),
            "speech": [{"start_s": round(start / RATE, 3), "end_s": round(end / RATE, 3)} for start, end in spans],
        }

    def watch(self, request: Request, item: torch.Tensor, reply: dict[str, Any]) -> Mapping[str, float | str]:  # noqa: ARG002
        """Describe the sound: its length, how loud it is, and what part of it is speech."""
        spoken_s = sum(span["end_s"] - span["start_s"] for span in reply["speech"])
        return {
            "duration_s": reply["duration_s"],
            "loudness": float(item.square().mean().sqrt()),
            "confidence": reply["probability"],
            "speech": spoken_s / max(reply["duration_s"], 1e-3),
        }

    def _duration_s(self, request: Request) -> float:
        """Return the length of a sound; 0 if it cannot be opened: decoding then raises the error."""
        with suppress(ItemError):
            return duration_s(request.as_bytes(), self.max_duration_s)
        return 0.0
