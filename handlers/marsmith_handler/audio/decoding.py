"""Decoding of WAV files to the samples that an audio model takes."""

from __future__ import annotations

import io
import wave

import numpy as np
import torch

from marsmith_handler.errors import BadRequest, ContentTooLarge, UnprocessableContent, UnsupportedMediaType
from marsmith_handler.file_pieces import MAX_PIECES, in_too_many_pieces

RATES = (4_000, 384_000)  # samples per second, lowest and highest


def decode_wav(body: bytes | bytearray, *, rate: int, max_duration_s: float) -> torch.Tensor:
    """Decode a WAV file with 16-bit PCM of any rate and number of channels; the channels are averaged.

    Returns:
        float32 tensor (samples,), -1 to 1, with ``rate`` samples per second.

    Raises:
        ItemError: 400 truncated or broken; 413 longer than ``max_duration_s``, or in too many pieces; 415 not WAV, or
            not 16-bit PCM; 422 without samples, or a rate outside of ``RATES``.
    """
    form, frames = _opened(body, max_duration_s, read=True)
    samples = np.frombuffer(frames, dtype="<i2").reshape(-1, form.nchannels).mean(axis=1, dtype=np.float32)
    return resampled(torch.from_numpy(samples / np.float32(32768)), form.framerate, rate)


def duration_s(body: bytes | bytearray, max_duration_s: float) -> float:
    """Return the length of a sound in seconds, from its header; raises as ``decode_wav``."""
    form, _ = _opened(body, max_duration_s, read=False)
    return form.nframes / form.framerate


def _opened(body: bytes | bytearray, max_duration_s: float, *, read: bool) -> tuple[wave._wave_params, bytes]:
    """Return the values of the header, and the samples if they are requested."""
    if body[:4] != b"RIFF" or body[8:12] != b"WAVE":
        raise UnsupportedMediaType(
            f"the body starts with {bytes(body[:4])!r}: this is no WAV file, which is all that is read here"
        )
    if in_too_many_pieces(memoryview(body), "WAV"):
        raise ContentTooLarge(f"the WAV file is cut into more than {MAX_PIECES} pieces")
    try:
        with wave.open(io.BytesIO(body), "rb") as file:
            form = file.getparams()
            _check(form, max_duration_s)
            frames = file.readframes(form.nframes) if read else b""
    except wave.Error as error:
        if "unknown" in str(error):
            raise UnsupportedMediaType("a WAV file that is not PCM; it must be 16-bit PCM") from None
        raise BadRequest("the WAV file is broken") from None
    except (EOFError, RuntimeError, ZeroDivisionError):
        raise BadRequest("the WAV file is truncated or broken") from None
    if read and len(frames) != form.nframes * form.nchannels * 2:
        raise BadRequest(f"the WAV file announces {form.nframes} samples and ends before")
    return form, frames


def resampled(signal: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    """Resample in the frequency domain, which removes the frequencies that the new rate cannot represent."""
    count = max(1, round(len(signal) * wanted / rate))
    if rate == wanted:
        return signal
    result: torch.Tensor = torch.fft.irfft(torch.fft.rfft(signal), n=count) * (count / len(signal))
    return result


def _check(form: wave._wave_params, max_duration_s: float) -> None:
    if form.sampwidth != 2:
        raise UnsupportedMediaType(f"a WAV file with {8 * form.sampwidth} bits a sample; it must be 16-bit PCM")
    if not RATES[0] <= form.framerate <= RATES[1]:
        raise UnprocessableContent(f"{form.framerate} samples per second; {RATES[0]} to {RATES[1]} are read")
    if form.nframes == 0:
        raise UnprocessableContent("the WAV file holds no sound")
    if form.nframes > max_duration_s * form.framerate:
        seconds = form.nframes / form.framerate
        raise ContentTooLarge(f"{seconds:.1f} seconds of sound, more than max_duration_s ({max_duration_s:g})")
