"""Which input killed its worker: found whatever kills, and nothing else changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marsmith.scoring.halving import Batch, ShardWork


def answer(work: ShardWork, poison: set[int], accidents: set[int]) -> tuple[list[Batch], int]:
    """Play a worker until the shard is done; return the batches of the run that was not interrupted, and all deaths."""
    deaths = 0
    while True:
        done = []
        for batch in list(work.batches):
            fatal = poison.intersection(batch) or accidents.intersection(batch)
            if fatal:
                accidents.difference_update(batch)
                work.note_death(batch, "killed")
                deaths += 1
                break
            done.append(batch)
        else:
            return done, deaths


@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 9),
    poison=st.sets(st.integers(0, 39), max_size=4),
    accidents=st.sets(st.integers(0, 39), max_size=3),
)
def test_what_kills_is_passed_over_and_all_others_are_answered_once(
    rows: int, size: int, poison: set[int], accidents: set[int]
) -> None:
    poison, accidents = {at for at in poison if at < rows}, {at for at in accidents if at < rows} - poison
    cut = ShardWork.of(0, rows, size).batches
    work = ShardWork.of(0, rows, size)
    done, _ = answer(work, poison, set(accidents))
    assert set(work.dead) == poison
    assert sorted([at for batch in done for at in batch] + list(work.dead)) == list(range(rows))
    # A death that does not repeat leaves the batches as the plan cut them.
    assert {batch for batch in cut if not poison.intersection(batch)} <= set(done)


def test_a_batch_is_repeated_whole_before_it_is_halved_and_an_input_is_not_blamed_for_one_death() -> None:
    work = ShardWork.of(0, 4, 4)
    work.note_death((0, 1, 2, 3), "out of memory")
    assert work.batches == [(0, 1, 2, 3)]
    work.note_death((0, 1, 2, 3), "out of memory")
    assert work.batches == [(0, 1), (2, 3)]
    work.note_death((0, 1), "out of memory")
    assert work.batches == [(0,), (1,), (2, 3)]
    work.note_death((1,), "out of memory")
    assert not work.dead
    work.note_death((1,), "out of memory")
    assert work.dead == {1: "out of memory"}
    assert work.batches == [(0,), (2, 3)]


def test_deaths_between_batches_blame_no_input() -> None:
    work = ShardWork.of(0, 4, 2)
    work.note_death(None, "killed")
    assert (work.batches, work.dead, work.idle_deaths) == ([(0, 1), (2, 3)], {}, 1)
