"""Set-ups that the tuner chooses from, and the measured time of a batch by its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Small sizes without gaps: under a latency limit, the best size is among them.
BATCH_SIZES = (1, 2, 3, 4, 8, 16, 32)
DELAYS_MS = (1, 2, 5, 10, 20)


@dataclass(frozen=True, order=True)
class Placement:
    """How an archive uses the cores.

    Attributes:
        archive: index of the archive, if several are compared.
        workers: number of worker processes.
        threads: threads of each worker within one operation.
    """

    archive: int
    workers: int
    threads: int


@dataclass(frozen=True, order=True)
class Setup:
    """All settings that are tuned.

    Attributes:
        placement: archive, workers and threads.
        batch_size: TorchServe's batchSize.
        max_batch_delay_ms: TorchServe's maxBatchDelay, in milliseconds.
    """

    placement: Placement
    batch_size: int
    max_batch_delay_ms: int

    def __str__(self) -> str:
        """Return a short description."""
        at = self.placement
        return f"{at.workers} x {at.threads} threads, batch {self.batch_size}, delay {self.max_batch_delay_ms} ms"

    @property
    def version(self) -> str:
        """A model version that names this set-up."""
        at = self.placement
        return f"a{at.archive}-w{at.workers}-t{at.threads}-b{self.batch_size}-d{self.max_batch_delay_ms}"


def placements(cores: int, archives: int = 1) -> list[Placement]:
    """Return the ways to divide ``cores``: all for one worker, one for each worker, and steps between.

    They include ones with fewer threads than cores: decoding and TorchServe's frontend need a core too.
    """
    shares = {(workers, cores // workers) for workers in _powers(cores)}
    shares |= {(1, threads) for threads in _powers(cores)} | {(cores, 1)}
    return sorted(Placement(archive, *share) for archive in range(archives) for share in shares)


def _powers(most: int) -> list[int]:
    return sorted({min(2**exponent, most) for exponent in range(most.bit_length() + 1)})


def setups(
    where: Iterable[Placement], batch_sizes: Sequence[int] = BATCH_SIZES, delays_ms: Sequence[int] = DELAYS_MS
) -> list[Setup]:
    """Return every set-up of these placements. A batch size of 1 needs no choice of delays."""
    return [
        Setup(placement, size, delay)
        for placement in where
        for size in batch_sizes
        for delay in (delays_ms if size > 1 else delays_ms[:1])
    ]


@dataclass(frozen=True)
class ServiceTime:
    """Median batch times measured at some sizes; times between them are interpolated linearly.

    Attributes:
        seconds: time of a batch in seconds, by batch size, ascending.
    """

    seconds: Mapping[int, float]

    def __call__(self, size: int) -> float:
        """Return the time for a batch of ``size``, in seconds."""
        known = sorted(self.seconds)
        below = max((each for each in known if each <= size), default=known[0])
        above = min((each for each in known if each >= size), default=known[-1])
        if below == above or size < known[0]:
            # Beyond the largest size: the time per item stays the same.
            return self.seconds[below] * max(1.0, size / below)
        share = (size - below) / (above - below)
        return self.seconds[below] + share * (self.seconds[above] - self.seconds[below])

    @property
    def most_per_second(self) -> float:
        """Items per second of one worker that is never idle, at the best batch size."""
        return max(size / seconds for size, seconds in self.seconds.items())
