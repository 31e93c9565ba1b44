"""Spans of speech, from the probability of speech in each window of a sound."""

from __future__ import annotations

from collections.abc import Sequence

RATE = 16_000  # samples per second
WINDOW = 512  # samples, 32 ms

# As in silero-vad's own get_speech_timestamps.
FALL = 0.15  # a span ends when the probability is this far below the threshold
SHORTEST_SPEECH = RATE * 250 // 1000
SHORTEST_SILENCE = RATE * 100 // 1000
MARGIN = RATE * 30 // 1000


def speech_spans(probabilities: Sequence[float], samples: int, threshold: float) -> list[tuple[int, int]]:
    """Return the spans of speech.

    Args:
        probabilities: of speech in each window of ``WINDOW`` samples, the last of which may be shorter.
        samples: length of the sound.
        threshold: minimum probability of a window with speech.

    Returns:
        The first sample of each span, and the first one after it.
    """
    spans = _raw_spans(probabilities, samples, threshold)
    long_enough = [(start, end) for start, end in spans if end - start > SHORTEST_SPEECH]
    return [(max(0, start - MARGIN), min(samples, end + MARGIN)) for start, end in long_enough]


def _raw_spans(probabilities: Sequence[float], samples: int, threshold: float) -> list[tuple[int, int]]:
    spans = []
    start: int | None = None
    pause: int | None = None
    for position, probability in zip(range(0, len(probabilities) * WINDOW, WINDOW), probabilities, strict=True):
        if probability >= threshold:
            start = position if start is None else start
            pause = None
        elif probability < threshold - FALL and start is not None:
            pause = position if pause is None else pause
            if position - pause >= SHORTEST_SILENCE:
                spans.append((start, pause))
                start = pause = None
    return spans if start is None else [*spans, (start, samples)]
