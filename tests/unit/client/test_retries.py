"""When a call is sent again, and how long a client waits: decided without a clock or a server."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.client.deadline import Deadline
from marsmith.client.failures import reply_of
from marsmith.client.retries import (
    LONGEST_RETRY_AFTER_S,
    NO_RETRIES,
    RETRY_AFTER_S,
    AttemptState,
    Failure,
    Pace,
    RetryPolicy,
    kind_of,
    next_pause_s,
    retry_after_s,
    silence_s,
)
from marsmith.errors import (
    AuthorizationError,
    ClientError,
    ConnectionFailedError,
    DeadlineError,
    NotFoundError,
    NoWorkerError,
    OverloadedError,
    RequestRejectedError,
)


def rejected(status: int, message: str, kind: str = "InternalServerException") -> RequestRejectedError:
    return RequestRejectedError(message, status=status, body=reply_of(status, kind, message).body)


REFUSED = ConnectionFailedError("nothing listens", refused=True)
BROKEN = ConnectionFailedError("the connection broke", sent=True)
DIED = rejected(507, "Worker died.")
RESTARTING = NoWorkerError("no worker", restarting=True)
SAFE = [REFUSED, OverloadedError("full", retry_after_s=0.2), RESTARTING]
UNCERTAIN = [BROKEN, DIED, DeadlineError("silent")]
FINAL = [
    NoWorkerError("scaled to none"),
    ConnectionFailedError("not trusted"),
    NotFoundError("no such model"),
    AuthorizationError("refused"),
    rejected(503, "Prediction failed"),
    rejected(413, "too large"),
    rejected(500, "Worker died.", kind="TheHandlerSaysSo"),
]


DEFAULT = RetryPolicy()


def pause(
    error: ClientError, policy: RetryPolicy = DEFAULT, *, idempotent: bool = True, **tries: float
) -> float | None:
    had = {"sent": 1, "uncertain": 1, "elapsed_s": 0.0, "left_s": 30.0, **tries}
    return next_pause_s(policy, error, AttemptState(**had), idempotent=idempotent, chance=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", SAFE, ids=str)
def test_what_was_surely_not_worked_on_is_sent_again_even_where_twice_would_harm(error: ClientError) -> None:
    assert pause(error, idempotent=False) is not None


@pytest.mark.parametrize("error", UNCERTAIN, ids=str)
def test_what_may_have_been_worked_on_is_sent_again_only_where_twice_does_no_harm(error: ClientError) -> None:
    assert pause(error, idempotent=True) is not None
    assert pause(error, idempotent=False) is None


@pytest.mark.parametrize("error", FINAL, ids=str)
def test_what_would_only_fail_again_is_final(error: ClientError) -> None:
    assert kind_of(error) is None
    assert pause(error) is None


@pytest.mark.parametrize("status", [429, 500, 507])
def test_a_worker_that_died_is_told_whatever_status_it_comes_with(status: int) -> None:
    assert kind_of(rejected(status, "Worker died.")) is Failure.WORKER_LOST
    assert kind_of(rejected(status, "Worker scaled down.")) is Failure.WORKER_LOST


def test_a_request_that_may_be_what_ends_the_workers_is_sent_again_only_a_few_times() -> None:
    policy = RetryPolicy(resends=2)
    assert [pause(DIED, policy, sent=n, uncertain=n) is not None for n in (1, 2, 3)] == [True, True, False]
    # Failures that are safe do not count.
    assert pause(DIED, policy, sent=9, uncertain=1) is not None
    assert pause(RESTARTING, policy, sent=99, uncertain=9) is not None


def test_without_retries_every_failure_is_final() -> None:
    assert all(pause(error, NO_RETRIES) is None for error in [*SAFE, *UNCERTAIN])


def test_only_the_named_failures_are_retried() -> None:
    policy = RetryPolicy(retried=frozenset({Failure.WORKER_LOST}))
    assert pause(DIED, policy) is not None
    assert all(pause(error, policy) is None for error in SAFE)


def test_a_server_that_does_not_listen_is_waited_for_only_briefly() -> None:
    assert pause(REFUSED, elapsed_s=1.9) is not None
    assert pause(REFUSED, elapsed_s=2.0) is None
    # Once it listens, other failures have the whole deadline.
    assert pause(RESTARTING, elapsed_s=20.0, left_s=10.0) is not None


def test_a_full_queue_is_tried_again_no_sooner_than_it_asks_for() -> None:
    for retry_after in (0.02, 0.5, 3.0):
        waited = pause(OverloadedError("full", retry_after_s=retry_after))
        assert waited is not None
        assert waited >= retry_after
    assert pause(OverloadedError("full", retry_after_s=3.0), left_s=2.0) is None


@given(
    sent=st.integers(1, 1000),
    left_s=st.floats(0, 60),
    chance=st.floats(0, 1),
    first=st.floats(0.001, 1),
    longest=st.floats(0.001, 10),
    error=st.sampled_from([*SAFE, *UNCERTAIN, *FINAL]),
)
def test_no_pause_is_negative_or_passes_the_deadline(
    sent: int, left_s: float, chance: float, first: float, longest: float, error: ClientError
) -> None:
    policy = RetryPolicy(pause_s=first, longest_pause_s=longest)
    tries = AttemptState(sent, 1, 0.0, left_s)
    waited = next_pause_s(policy, error, tries, idempotent=True, chance=chance)
    assert waited is None or 0 <= waited < left_s
    if waited is not None and not isinstance(error, OverloadedError):
        assert waited <= longest


def test_the_bound_of_the_pauses_doubles_up_to_the_longest() -> None:
    policy = RetryPolicy(pause_s=0.1, longest_pause_s=1.0)
    assert [policy.bound_s(n) for n in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert policy.bound_s(10_000) == 1.0


def test_a_deadline_runs_out_and_never_below_nothing() -> None:
    assert Deadline(0.0).left_s == 0.0
    assert 9 < Deadline(10.0).left_s <= 10
    assert Deadline(math.inf).left_s == math.inf


def test_how_long_silence_is_borne_follows_the_slowest_answer_lately() -> None:
    assert silence_s([0.01] * 3) is None
    assert silence_s([0.01] * 20) == 10.0
    assert silence_s([0.01] * 20 + [4.0]) == 40.0


def test_when_to_try_again_follows_the_queue_and_the_speed_of_the_version() -> None:
    assert retry_after_s([], 100, 8) == RETRY_AFTER_S
    # 100 wait and 20 are in hand: the last is answered 1.2 s later, so 100 a second, and half the queue in 0.5 s.
    assert retry_after_s([1.2] * 20, 100, 20) == pytest.approx(0.5)
    assert retry_after_s([1000.0] * 20, 100, 0) == LONGEST_RETRY_AFTER_S


def test_the_pace_is_kept_apart_by_model_and_version_and_forgets_what_is_old() -> None:
    pace = Pace()
    for number in range(100):
        pace.note("m", None, float(number))
    pace.note("m", "2.0", 7.0)
    assert pace.seconds("m", None) == [float(number) for number in range(36, 100)]
    assert pace.seconds("m", "2.0") == [7.0]
    assert pace.seconds("n", None) == []
