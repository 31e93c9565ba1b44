from __future__ import annotations

import base64
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith_handler.audio.decoding import decode_wav, resampled
from marsmith_handler.audio.speech_spans import RATE, speech_spans
from marsmith_handler.errors import ItemError
from support.handler_fixtures import Worker, write_manifest, write_model
from support.sounds import Loudness, noise, wav

HANDLER = "voice_activity_handler.py"
# Resonances of the throat in a, i, u, e, o: in hertz.
VOWELS = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)]


def voice() -> torch.Tensor:
    """Two seconds of a voice that says vowels: pulses of the glottis, through the resonances of the throat."""
    length, syllables = int(0.18 * RATE), []
    frequencies = torch.fft.rfftfreq(2 * length, 1 / RATE)
    for number, resonances in enumerate(VOWELS * 2):
        pitch = 130 + 20 * math.sin(number) - 30 * torch.linspace(0, 1, length)
        turns = torch.cumsum(pitch / RATE, 0).floor()
        spectrum = torch.fft.rfft(torch.diff(turns, prepend=turns[:1]), 2 * length)
        for center, width in zip(resonances, (80, 100, 140), strict=True):
            spectrum = spectrum * center**2 / (center**2 - frequencies**2 + 1j * frequencies * width)
        syllable = torch.fft.irfft(spectrum, 2 * length)[:length] * torch.hann_window(length) ** 0.3
        syllables += [syllable / syllable.abs().max() * 0.5, torch.zeros(int(0.05 * RATE))]
    return torch.cat(syllables)


def write_archive(folder: Path, **handler: Any) -> Path:
    write_manifest(folder, HANDLER)
    config = {"minWorkers": 1, "handler": {"warm_up_s": 0.01, **handler}}
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    write_model(tmp_path / "model", Loudness())
    return Worker(write_archive(tmp_path / "model", max_duration_s=3), HANDLER)


@pytest.fixture(scope="module")
def silero(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    package = importlib.util.find_spec("silero_vad")
    if package is None:
        pytest.skip("silero-vad is not installed")
    folder = write_archive(tmp_path_factory.mktemp("silero") / "model")
    shutil.copy(Path(str(package.origin)).parent / "data" / "silero_vad.jit", folder / "model.pt")
    return Worker(folder, HANDLER)


def test_real_weights_tell_a_voice_from_silence_and_noise(silero: Worker) -> None:
    sounds = [voice(), torch.zeros(RATE), noise(2, 0.1), torch.cat([torch.zeros(RATE), voice(), torch.zeros(RATE)])]
    spoken, silent, noisy, framed = (reply.json() for reply in silero.send(*[wav(sound) for sound in sounds]))
    assert spoken["probability"] > 0.8
    assert silent == {"duration_s": 1.0, "probability": pytest.approx(0, abs=0.1), "speech": []}
    assert noisy["probability"] < 0.2
    assert noisy["speech"] == []
    assert framed["duration_s"] == pytest.approx(4.3, abs=0.001)
    assert all(0.9 < span["start_s"] < span["end_s"] < 3.5 for span in framed["speech"])
    assert framed["speech"]


def test_neighbours_of_other_lengths_change_nothing(silero: Worker) -> None:
    sounds = [wav(voice()), wav(noise(0.01, 0.1)), wav(torch.cat([voice(), noise(1, 0.2)]))]
    together = [reply.json() for reply in silero.send(*sounds)]
    for sound, reply in zip(sounds, together, strict=True):
        (alone,) = silero.send(sound)
        assert reply["probability"] == pytest.approx(alone.json()["probability"], abs=1e-3)
        assert reply["speech"] == alone.json()["speech"]


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (48000, 1)])
def test_a_voice_is_heard_at_any_rate_and_in_stereo(silero: Worker, rate: int, channels: int) -> None:
    (reply,) = silero.send(wav(resampled(voice(), RATE, rate), rate=rate, channels=channels))
    assert reply.json()["probability"] > 0.7
    assert reply.json()["duration_s"] == pytest.approx(2.3, abs=0.01)


@given(st.lists(st.sampled_from([0.0, 0.2, 0.36, 0.45, 0.5, 0.9]), max_size=80), st.integers(1, 512))
@settings(max_examples=200, deadline=None)
def test_spans_are_those_of_silero_vad(probabilities: list[float], last: int) -> None:
    threads = torch.get_num_threads()
    package = pytest.importorskip("silero_vad")
    # Its import sets one thread for the whole process.
    torch.set_num_threads(threads)
    samples = max(0, len(probabilities) * 512 - 512 + last) if probabilities else 0
    theirs = package.get_speech_timestamps_from_probs(probabilities, audio_length_samples=samples)
    assert speech_spans(probabilities, samples, 0.5) == [(span["start"], span["end"]) for span in theirs]


def test_speech_is_told_in_seconds(worker: Worker) -> None:
    sound = torch.zeros(2 * RATE)
    sound[512 * 10 : 512 * 30] = 0.9
    (reply,) = worker.send(wav(sound))
    start, end = (512 * 10 - 480) / RATE, (512 * 30 + 480) / RATE
    assert reply.json() == {
        "duration_s": 2.0,
        "probability": pytest.approx(0.9, abs=1e-3),
        "speech": [{"start_s": round(start, 3), "end_s": round(end, 3)}],
    }


def test_every_way_of_sending_a_sound_gives_the_same_answer(worker: Worker) -> None:
    body = wav(noise(1, 0.3))
    text = base64.b64encode(body).decode()
    ways = [
        (body, "audio/wav"),
        [("data", "audio/x-wav", body)],
        (json.dumps({"data": text}).encode(), "application/json"),
        json.dumps({"b64": text}).encode(),
    ]
    expected = worker.send(body)[0].body
    for way in ways:
        assert worker.send(way)[0].body == expected
    several, v1 = worker.send(json.dumps([text, text]).encode(), json.dumps({"instances": [{"b64": text}]}).encode())
    assert several.json() == [json.loads(expected)] * 2
    assert v1.json() == {"predictions": [json.loads(expected)]}


def test_bad_sounds_get_their_own_4xx_and_their_neighbours_their_answers(worker: Worker) -> None:
    good = wav(noise(1, 0.3))
    as_float = bytearray(good)
    as_float[20] = 3
    bad = {
        "empty": (b"", 400),
        "no sound file": (b"ID3\x04 an mp3", 415),
        "float": (bytes(as_float), 415),
        "8 bits": (wav(noise(1, 0.3), width=1), 415),
        "24 bits": (wav(noise(1, 0.3), width=3), 415),
        "cut": (good[: len(good) // 2], 400),
        "header only": (good[:20], 400),
        "no frames": (wav(torch.zeros(0)), 422),
        "slow": (wav(torch.zeros(100), rate=100), 422),
        "long": (wav(torch.zeros(4 * RATE)), 413),
        "a list": (b"[1, 2, 3]", 415),
    }
    replies = worker.send(good, *[body for body, _ in bad.values()], good)
    assert {name: reply.status for name, reply in zip(bad, replies[1:-1], strict=True)} == {
        name: status for name, (_, status) in bad.items()
    }
    assert all(reply.json().keys() == {"code", "type", "message", "request_id"} for reply in replies[1:-1])
    assert replies[0].body == replies[-1].body == worker.send(good)[0].body


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_wav_file_is_decoded_or_refused_with_4xx(data: st.DataObject) -> None:
    body = bytearray(wav(noise(0.05, 0.3), channels=2))
    for position in data.draw(st.lists(st.integers(0, 50), max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    length, code = 1, 400
    try:
        length = len(decode_wav(body, rate=RATE, max_duration_s=1))
    except ItemError as error:
        code = error.code
    assert 0 < length <= RATE
    assert 400 <= code < 500


def test_resampling_keeps_a_tone_and_drops_what_the_new_rate_cannot_hold() -> None:
    time = torch.arange(48_000, dtype=torch.float64) / 48_000
    low, high = torch.sin(2 * torch.pi * 440 * time), torch.sin(2 * torch.pi * 12_000 * time)
    heard = resampled(low + high, 48_000, RATE)
    torch.testing.assert_close(heard, torch.sin(2 * torch.pi * 440 * time[: 3 * RATE : 3]), atol=1e-9, rtol=0)
