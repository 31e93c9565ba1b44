"""The e-process of a rollout: exact examples, its promise by enumeration, and its arithmetic as properties."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.statistics import (
    RATIOS,
    Evidence,
    Ledger,
    SeenUsers,
    latency_limit_ms,
    rate_interval,
    tolerated,
    value,
    weigh,
    weigh_rate,
)

shares = st.floats(1e-4, 1 - 1e-4)
events = st.lists(st.tuples(shares, st.booleans()), max_size=60)


def _weighed(pairs: list[tuple[float, bool]]) -> Evidence:
    evidence = Evidence()
    for share, is_canary in pairs:
        evidence = weigh(evidence, share, is_canary)
    return evidence


def _ever_reached(limit: float, chances: list[float], step: Callable[[Evidence, int, bool], Evidence]) -> float:
    """Return the exact probability that evidence ever reaches its limit, over all sequences of events."""
    alive: dict[int, tuple[float, Evidence]] = {0: (1.0, Evidence())}
    reached = 0.0
    for number, chance in enumerate(chances):
        after: dict[int, float] = defaultdict(float)
        evidences: dict[int, Evidence] = {}
        for hits, (probability, evidence) in alive.items():
            for hit, part in ((True, chance), (False, 1 - chance)):
                following = step(evidence, number, hit)
                if value(following) >= limit:
                    reached += probability * part
                else:
                    after[hits + hit] += probability * part
                    evidences[hits + hit] = following
        alive = {hits: (probability, evidences[hits]) for hits, probability in after.items()}
    return reached


def test_three_failures_of_a_canary_with_5_percent_of_the_traffic_are_enough_at_1_percent() -> None:
    evidence, values = Evidence(), []
    for _ in range(3):
        evidence = weigh(evidence, 0.05, is_canary=True)
        values.append(round(value(evidence), 1))
    assert values == [6.5, 55.0, 528.5]
    assert (evidence.hits, evidence.others) == (3, 0)


def test_evidence_begins_at_1_and_a_share_of_nothing_or_all_says_nothing() -> None:
    assert value(Evidence()) == 1
    assert weigh(weigh(Evidence(), 0.0, is_canary=True), 1.0, is_canary=True) == Evidence()
    with pytest.raises(ValueError, match="share"):
        weigh(Evidence(), math.nan, is_canary=True)
    with pytest.raises(ValueError, match="allowed rate"):
        weigh_rate(Evidence(), 0.0, happened=True)


def test_an_outage_of_both_versions_weighs_for_neither() -> None:
    outage = weigh(weigh(Evidence(), 0.05, True, times=5_000), 0.05, False, times=95_000)
    assert value(outage) < 1e-9
    assert value(weigh(Evidence(), 0.05, True, times=100_000)) > 1e300, "finite, though its logarithm is not small"


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
def test_a_version_as_bad_as_tolerated_is_ever_found_at_fault_with_at_most_alpha(share: float) -> None:
    def step(evidence: Evidence, number: int, hit: bool) -> Evidence:
        return weigh(evidence, share, hit)

    worst = _ever_reached(1 / 0.05, [tolerated(share)] * 150, step)
    alike = _ever_reached(1 / 0.05, [share] * 150, step)
    assert 0 < alike < worst <= 0.05


def test_the_promise_holds_on_a_ramp() -> None:
    # A sample: evidence depends on the step in which an event lies, so counts alone do not enumerate the paths.
    ramp = [0.01] * 40 + [0.05] * 60 + [0.25] * 60 + [0.5] * 60
    numbers, found = random.Random(7), 0
    for _ in range(500):
        evidence, highest = Evidence(), 1.0
        for share in ramp:
            evidence = weigh(evidence, share, numbers.random() < tolerated(share))
            highest = max(highest, value(evidence))
        found += highest >= 100
    assert found <= 5


def test_a_rate_that_is_allowed_is_ever_found_too_high_with_at_most_alpha() -> None:
    def step(evidence: Evidence, number: int, hit: bool) -> Evidence:
        return weigh_rate(evidence, 0.02, hit)

    assert 0 < _ever_reached(20, [0.02] * 400, step) <= 0.05
    # The rate rises from none to twice what is allowed, so its mean never exceeds it.
    assert _ever_reached(20, [0.04 * number / 400 for number in range(400)], step) <= 0.05
    assert _ever_reached(20, [0.2] * 400, step) > 0.999


@given(pairs=events, share=shares, chance=st.floats(0, 1))
def test_no_event_is_expected_to_raise_evidence_against_a_version_as_bad_as_tolerated(
    pairs: list[tuple[float, bool]], share: float, chance: float
) -> None:
    before = _weighed(pairs)
    probability = chance * tolerated(share)
    expected = probability * value(weigh(before, share, True)) + (1 - probability) * value(weigh(before, share, False))
    assert expected <= value(before) * (1 + 1e-9)


@given(pairs=events, cut=st.integers(0, 60))
def test_evidence_is_a_sum(pairs: list[tuple[float, bool]], cut: int) -> None:
    whole, parts = _weighed(pairs), _weighed(pairs[:cut]) + _weighed(pairs[cut:])
    assert parts.logs == pytest.approx(whole.logs, abs=1e-9)
    assert (parts.hits, parts.others) == (whole.hits, whole.others)


@given(pairs=events, share=shares, times=st.integers(1, 50))
def test_events_may_be_weighed_together(pairs: list[tuple[float, bool]], share: float, times: int) -> None:
    one_by_one = together = _weighed(pairs)
    for _ in range(times):
        one_by_one = weigh(one_by_one, share, True)
    assert weigh(together, share, True, times).logs == pytest.approx(one_by_one.logs)


@given(pairs=events, share=shares)
def test_a_canary_event_raises_the_evidence_and_a_stable_event_lowers_it(
    pairs: list[tuple[float, bool]], share: float
) -> None:
    before = _weighed(pairs)
    assert value(weigh(before, share, False)) < value(before) < value(weigh(before, share, True))


@given(share=shares)
def test_tolerated_is_an_odds_ratio(share: float) -> None:
    assert tolerated(share) / (1 - tolerated(share)) == pytest.approx(1.5 * share / (1 - share))
    # The likelihood ratio as its definition has it.
    for ratio, log in zip(RATIOS, weigh(Evidence(), share, False).logs, strict=True):
        alternative = tolerated(share, 1.5 * ratio)
        assert log == pytest.approx(math.log((1 - alternative) / (1 - tolerated(share))), rel=1e-6, abs=1e-9)


def test_a_ledger_splits_alpha_over_its_kinds_and_goes_on_from_its_record() -> None:
    ledger = Ledger({"error": 5, "slow": 1, "disagree": 1, "refused": 1}, alpha=0.01)
    for number in range(3):
        ledger.event("error", 0.05, is_canary=True, user=f"user-{number}")
    for _ in range(50):
        ledger.event("slow", 0.05, is_canary=True, user="the same user")
    ledger.observe("disagree", 0.01, happened=False)
    error, slow, disagree, refused = ledger.findings()
    assert [each.limit for each in (error, slow, disagree, refused)] == pytest.approx([160, 800, 800, 800])
    assert (error.reached, slow.reached, slow.hits) == (True, False, 1)
    assert disagree.evidence < refused.evidence == 1

    resumed = Ledger.of_record(json.loads(json.dumps(ledger.record())))
    assert resumed.findings() == ledger.findings()
    resumed.event("slow", 0.05, is_canary=True, user="the same user")
    assert resumed.findings() == ledger.findings()
    assert "the same user" not in json.dumps(ledger.record())


def test_an_event_while_one_version_has_all_traffic_does_not_use_up_the_user() -> None:
    ledger = Ledger({"error": 1})
    ledger.event("error", 0.0, is_canary=False, user="early")
    ledger.event("error", 0.05, is_canary=True, user="early")
    assert ledger.findings()[0].hits == 1


@pytest.mark.parametrize("kinds", [{}, {"error": 0.0}])
def test_a_ledger_refuses_kinds_that_alpha_cannot_be_split_over(kinds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="kinds"):
        Ledger(kinds)


def test_too_many_users_are_thinned_by_a_hash_and_stay_bounded() -> None:
    seen = SeenUsers(most=100)
    counted = [seen.is_first(f"user-{number}") for number in range(10_000)]
    assert len(seen.record()["marks"]) <= 100
    assert all(counted[:100])
    assert 0 < sum(counted[5_000:]) < 200, "users still count, a small part of them"
    assert not any(seen.is_first(f"user-{number}") for number in range(10_000))
    assert seen.is_first("")


@given(users=st.lists(st.text(min_size=1, max_size=3), max_size=80))
def test_a_user_counts_at_most_once(users: list[str]) -> None:
    seen = SeenUsers(most=8)
    counted = [user for user in users if seen.is_first(user)]
    assert len(counted) == len(set(counted))
    again = SeenUsers.of_record(json.loads(json.dumps(seen.record())))
    assert not any(again.is_first(user) for user in users)


def test_an_interval_covers_a_rate_at_any_time() -> None:
    def misses(rate: float, observations: int) -> float:
        alive, missed = {0: 1.0}, 0.0
        for number in range(1, observations + 1):
            after: dict[int, float] = defaultdict(float)
            for happened, probability in alive.items():
                for hit, part in ((1, rate), (0, 1 - rate)):
                    after[happened + hit] += probability * part
            alive = {}
            for happened, probability in after.items():
                found = rate_interval(happened, number, alpha=0.1)
                if found.lower <= rate <= found.upper:
                    alive[happened] = probability
                else:
                    missed += probability
        return missed

    assert 0 < misses(0.95, 60) <= 0.1
    assert 0 < misses(0.5, 60) <= 0.1


def test_intervals_of_known_counts() -> None:
    assert (rate_interval(0, 0).lower, rate_interval(0, 0).upper) == (0, 1)
    perfect = rate_interval(1_000, 1_000)
    assert (round(perfect.lower, 4), perfect.upper) == (0.9930, 1.0)
    some = rate_interval(990, 1_000)
    assert (round(some.lower, 4), round(some.upper, 4)) == (0.9738, 0.9976)
    assert math.isnan(rate_interval(0, 0).rate)
    with pytest.raises(ValueError, match="not a rate"):
        rate_interval(3, 2)


@given(counts=st.integers(1, 3_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_the_observed_rate_and_is_symmetric(counts: tuple[int, int]) -> None:
    happened, observations = counts
    found, mirrored = rate_interval(happened, observations), rate_interval(observations - happened, observations)
    assert 0 <= found.lower <= found.rate <= found.upper <= 1
    assert (mirrored.lower, mirrored.upper) == pytest.approx((1 - found.upper, 1 - found.lower), abs=1e-9)


def test_the_limit_of_a_latency_is_a_quantile_of_enough_answers() -> None:
    assert latency_limit_ms([1.0] * 199) is None
    assert latency_limit_ms([float(each) for each in range(1, 1_001)]) == 990
