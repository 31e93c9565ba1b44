"""Sounds, and a model that hears them."""

from __future__ import annotations

import io
import wave

import torch

from marsmith_handler.audio.speech_spans import RATE


class Loudness(torch.nn.Module):
    """Stands in for silero-vad: the probability of speech is the loudest sample of the window."""

    def forward(self, sounds: torch.Tensor) -> torch.Tensor:
        return sounds

    @torch.jit.export
    def audio_forward(self, sounds: torch.Tensor, rate: int) -> torch.Tensor:
        return sounds.reshape(sounds.shape[0], -1, 512).abs().amax(dim=2)


def wav(signal: torch.Tensor, *, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        samples = (signal.clamp(-1, 1) * 32767).to(torch.int16).repeat_interleave(channels)
        file.writeframes(samples.numpy().tobytes() if width == 2 else bytes(len(samples) * width))
    return stream.getvalue()


def noise(seconds: float, loudness: float) -> torch.Tensor:
    return torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(1)) * loudness
