"""How requests are shared out, and which are refused: decisions without any process."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from marsmith.host.admission import Pace, refuse
from marsmith.host.batching import MOST_HELD, next_share

HELD = st.lists(st.integers(0, MOST_HELD), max_size=8)


def shared_out(waiting: int, held: list[int], batch_size: int) -> list[tuple[int, int]]:
    """Share out until nobody gets anything, as a pool does."""
    held, shares = list(held), []
    while (share := next_share(waiting, held, batch_size)) is not None:
        shares.append((share.worker, share.requests))
        held[share.worker] += 1
        waiting -= share.requests
    return shares


@given(st.integers(0, 200), HELD, st.integers(1, 32))
def test_no_worker_gets_too_much_and_no_request_waits_for_an_idle_worker(
    waiting: int, held: list[int], batch_size: int
) -> None:
    shares = shared_out(waiting, held, batch_size)
    taken = sum(count for _, count in shares)
    assert all(1 <= count <= batch_size for _, count in shares)
    assert taken <= waiting
    after = [batches + sum(worker == place for worker, _ in shares) for place, batches in enumerate(held)]
    assert all(batches <= MOST_HELD for batches in after)
    # Somebody is idle only if nobody waits.
    assert taken == waiting or all(after)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 32))
def test_what_waits_is_shared_out_evenly_over_idle_workers(waiting: int, workers: int, batch_size: int) -> None:
    first = shared_out(waiting, [0] * workers, batch_size)[:workers]
    counts = [count for _, count in first]
    assert max(counts) - min(counts) <= 1 or min(counts) == batch_size
    assert len({worker for worker, _ in first}) == len(first)


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 32))
def test_a_busy_worker_gets_a_batch_ahead_only_if_all_can_get_a_full_one(
    waiting: int, workers: int, batch_size: int
) -> None:
    shares = shared_out(waiting, [1] * workers, batch_size)
    assert all(count == batch_size for _, count in shares)
    assert len(shares) in (0, workers)
    assert bool(shares) is (waiting >= batch_size * workers)


def test_a_lone_request_goes_out_at_once() -> None:
    share = next_share(1, [1, 0], 8)
    assert share is not None
    assert tuple(share) == (1, 1)


def known(seconds: float) -> Pace:
    pace = Pace()
    for _ in range(20):
        pace.note(seconds)
    return pace


def refused(waiting: int = 0, *, pace: Pace | None = None, left_s: float = math.inf) -> int | None:
    found = refuse(waiting=waiting, queue_size=10, workers=2, batch_size=4, pace=pace or Pace(), left_s=left_s)
    return found.status if found else None


def test_a_full_queue_is_a_429_and_a_missed_deadline_a_503() -> None:
    assert refused(9) is None
    assert refused(10) == 429
    assert refused(left_s=0.0) == 503
    # 8 requests fill both workers once; the ninth is in a second batch.
    assert refused(7, pace=known(1.0), left_s=1.5) is None
    assert refused(8, pace=known(1.0), left_s=1.5) == 503


def test_nothing_is_refused_for_its_deadline_while_too_little_is_known() -> None:
    pace = Pace()
    pace.note(60.0)
    assert refused(9, pace=pace, left_s=0.01) is None


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=50))
def test_the_pace_is_between_the_shortest_and_the_longest_batch(seconds: list[float]) -> None:
    pace = Pace()
    for each in seconds:
        pace.note(each)
    assert min(seconds) - 1e-9 <= pace.mean_s <= max(seconds) + 1e-9


def test_retry_after_says_when_another_attempt_is_useful() -> None:
    found = refuse(waiting=100, queue_size=100, workers=1, batch_size=1, pace=known(0.5), left_s=math.inf)
    assert found is not None
    assert found.retry_after_s == math.ceil(101 * 0.5 / 2)
