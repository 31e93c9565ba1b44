"""Find the input that kills its worker: repeat the batch, then halve it until the input stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Batch = tuple[int, ...]


@dataclass
class ShardWork:
    """How a shard is answered: its batches, in the order of work, and the inputs that are passed over.

    A batch whose worker died is first repeated whole, because the death may have had another cause: such as the memory
    of the machine. Batches of inputs whose worker did not die stay as the plan cut them, so that their answers are the
    same in every run.

    Attributes:
        index: of the shard.
        batches: positions of inputs in the shard.
        dead: why inputs are passed over, by position.
        idle_deaths: how often a worker died between batches, or before the first one.
    """

    index: int
    batches: list[Batch]
    dead: dict[int, str] = field(default_factory=dict)
    idle_deaths: int = 0
    _deaths: dict[Batch, int] = field(default_factory=dict)
    _halves: set[Batch] = field(default_factory=set)

    @classmethod
    def of(cls, index: int, rows: int, batch_size: int) -> ShardWork:
        """Cut a shard into the batches of the plan."""
        return cls(index, [tuple(range(at, min(at + batch_size, rows))) for at in range(0, rows, batch_size)])

    def note_death(self, batch: Sequence[int] | None, reason: str) -> None:
        """Decide how to go on after the worker died in a batch; None: between batches.

        What is under suspicion comes first, so that as little as possible is repeated.
        """
        if batch is None:
            self.idle_deaths += 1
            return
        at = tuple(batch)
        self._deaths[at] = self._deaths.get(at, 0) + 1
        self.batches.remove(at)
        is_repeated = self._deaths[at] > 1
        if len(at) == 1 and is_repeated:
            self.dead[at[0]] = reason
        elif len(at) > 1 and (is_repeated or at in self._halves):
            middle = len(at) // 2
            halves = [at[:middle], at[middle:]]
            self._halves.update(halves)
            self.batches[:0] = halves
        else:
            self.batches.insert(0, at)
