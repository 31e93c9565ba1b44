"""From the probability of speech in each window of a sound to the spans in which someone speaks."""

from __future__ import annotations

from collections.abc import Sequence

RATE = 16_000  # samples per second
WINDOW = 512  # samples, 32 ms

# As silero-vad's own get_speech_timestamps has them.
FALL = 0.15  # a span goes on until the probability is so far below the threshold
SHORTEST_SPEECH = RATE * 250 // 1000
SHORTEST_SILENCE = RATE * 100 // 1000
MARGIN = RATE * 30 // 1000


def speech_spans(probabilities: Sequence[float], samples: int, threshold: float) -> list[tuple[int, int]]:
    """Find where someone speaks.

    Args:
        probabilities: of speech in each window of ``WINDOW`` samples, the last of which may be cut short.
        samples: length of the sound.
        threshold: probability from which on a window is speech.

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
