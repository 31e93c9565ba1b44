"""Canaries without a server: what may be asked for, what comes next, and the state that a driver goes on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.config.model_spec import parse_model_spec
from marsmith.config.rollout_spec import RolloutSpec, parse_duration, parse_sticky
from marsmith.deploy.traffic.canary import Canary, try_timeout_s
from marsmith.deploy.traffic.decision import (
    ENDED,
    OPEN,
    Back,
    Hold,
    Inconclusive,
    Next,
    Phase,
    Promote,
    Standing,
    decide,
)
from marsmith.deploy.traffic.state import (
    MOST_MOMENTS,
    Driver,
    Level,
    Moment,
    RolloutFile,
    RolloutState,
    parse_rollout,
    render_rollout,
)
from marsmith.deploy.traffic.tally import Tally
from marsmith.errors import FormatError, ServerError, SpecError, UsageError
from marsmith.project import Project

CANARY = Canary(steps=(1, 5, 25), interval_s=60, min_requests=10, max_wait_s=600)
RISING = Standing("rising", 0, 60, 10)
SPEC = """\
name: m
version: "1.0"
export: {recipe: export/m.py}
handler: {entry_point: handlers/m_handler.py}
rollout:
"""

phases = st.sampled_from(sorted(OPEN | ENDED | {"promoting", "going back"}))
standings = st.builds(
    Standing,
    phases,
    st.integers(0, 2),
    st.floats(0, 1e6),
    st.integers(0, 10**6),
    st.none() | st.just("errors"),
    st.none() | st.just("0 compared replies"),
)
counts = st.integers(0, 10**9)
times = st.floats(0, 1e10)
tallies = st.builds(Tally, counts, counts, counts, counts, st.dictionaries(st.integers(-50, 200), counts, max_size=5))
moments = st.builds(
    Moment,
    times,
    st.integers(0, 10_000),
    phases,
    st.text(),
    st.dictionaries(st.text(max_size=9), st.floats(0, 1e300), max_size=4),
)
states = st.builds(
    RolloutState,
    model=st.just("m"),
    version=st.just("2.0"),
    stable=st.just("1.0"),
    canary=st.just(CANARY) | st.just(Canary(sticky="cookie:who")),
    level=st.builds(Level, st.none() | st.floats(0.1, 1e5), st.floats(0.1, 100)),
    began_s=times,
    phase=phases,
    step=st.integers(-1, 2),
    step_began_s=times,
    step_answers=counts,
    reason=st.text(),
    canary_tally=tallies,
    stable_tally=tallies,
    slow_ms=st.none() | st.floats(0, 1e6),
    ledger=st.just({}) | st.just({"alpha": 0.01, "kinds": {"failed": {"logs": [0.5, -1.25], "users": {"marks": [7]}}}}),
    position=counts,
    timeline=st.lists(moments, max_size=4).map(tuple),
    driver=st.none() | st.builds(Driver, st.integers(1, 2**31 - 1), times),
    ended_s=st.none() | times,
)


def state(**other: Any) -> RolloutState:
    made = RolloutState("m", "2.0", "1.0", CANARY, Level(None, 15.0), began_s=1000.0)
    return replace(made, **other)


@pytest.mark.parametrize(
    ("standing", "wanted"),
    [
        (RISING, Next(1)),
        (replace(RISING, step=1), Next(2)),
        (replace(RISING, step=2), Promote()),
        (replace(RISING, at_step_s=59.9), Hold()),
        (replace(RISING, answers=9), Hold()),
        (replace(RISING, phase="paused", at_step_s=1e6, answers=1000), Hold()),
        (replace(RISING, trouble="1.0 is slow"), Back("1.0 is slow")),
        (replace(RISING, phase="paused", trouble="errors"), Back("errors")),
        (replace(RISING, phase="inconclusive", trouble="errors"), Back("errors")),
    ],
)
def test_a_canary_moves_on_only_with_time_and_requests(standing: Standing, wanted: object) -> None:
    assert decide(CANARY, standing) == wanted


def test_a_canary_without_traffic_holds_then_is_inconclusive_and_says_how_many_requests_it_had() -> None:
    quiet = replace(RISING, step=2, answers=3)
    assert decide(CANARY, replace(quiet, at_step_s=599)) == Hold()
    assert decide(CANARY, replace(quiet, at_step_s=600)) == Inconclusive(
        "3 answers of the canary in 600 s at 25%, and 10 are needed"
    )


@given(standings)
def test_no_canary_is_promoted_with_trouble_or_without_requests_and_none_that_ended_moves(standing: Standing) -> None:
    decision = decide(CANARY, standing)
    enough = standing.answers >= CANARY.min_requests and standing.at_step_s >= CANARY.interval_s
    if isinstance(decision, Promote):
        assert standing.missing is None
    if isinstance(decision, Promote | Next):
        assert standing.phase == "rising"
        assert enough
        assert not standing.trouble
    assert isinstance(decision, Back) == (standing.phase in OPEN and standing.trouble is not None)
    if standing.phase not in OPEN:
        assert decision == Hold()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": ()}, "not above 0 and below 100"),
        ({"steps": (0, 5)}, "not above 0 and below 100"),
        ({"steps": (5, 100)}, "not above 0 and below 100"),
        ({"steps": (5, 5)}, "the steps 5, 5 do not rise"),
        ({"steps": (25, 5)}, "the steps 25, 5 do not rise"),
        ({"steps": (0.001,)}, "more than two decimals"),
        ({"steps": (float("nan"),)}, "not above 0 and below 100"),
        ({"sticky": "x-user-id"}, "is not a sticky key"),
        ({"sticky": "cookie:a b"}, "'a b' is not the name of a cookie"),
        ({"sticky": "cookie:"}, "'' is not the name of a cookie"),
        ({"sticky": "cookie:ä"}, "is not the name of a cookie"),
        ({"sticky": "header:X-Marsmith-Log"}, "the front removes"),
        ({"alpha": 0}, "alpha is 0"),
        ({"min_requests": 0}, "a step of 0 requests"),
        ({"interval_s": 61, "max_wait_s": 60}, "an interval of 61 s"),
    ],
)
def test_a_canary_that_cannot_be_run_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Canary(**values)
    assert "\n" not in caught.value.message


def test_shares_are_whole_ten_thousandths_and_a_header_is_in_lower_case() -> None:
    assert Canary(steps=(0.01, 1, 33.33)).shares == (1, 100, 3333)
    assert parse_sticky("header:X-User-Id") == ("header", "x-user-id")
    assert parse_sticky("cookie:Session_ID") == ("cookie", "Session_ID")


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("2m", 120), ("1.5h", 5400)])
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "0s", "-1s", "2 m", "1e3s", "2d", "m", "2m "])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration above 0"):
        parse_duration(text)


def test_a_spec_says_how_its_versions_get_their_requests_and_options_override_it() -> None:
    rollout = parse_model_spec(SPEC + '  {strategy: canary, steps: [10, 50], interval: 30s, sticky: "cookie:who"}', "m")
    assert rollout.rollout.strategy == "canary"
    assert Canary.of(rollout.rollout) == Canary(steps=(10, 50), interval_s=30, sticky="cookie:who")
    assert Canary.of(rollout.rollout, {"interval_s": 60.0}).interval_s == 60
    assert Canary.of(RolloutSpec()) == Canary()
    assert RolloutSpec().strategy == "switch"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("  steps: [5, 1]", "line 6: rollout.steps: the steps 5, 1 do not rise; each is larger"),
        ("  interval: 2", "line 6: rollout.interval: input should be a valid string"),
        ("  interval: 2x", "line 6: rollout.interval: '2x' is not a duration above 0; write a number with its unit"),
        ("  interval: 2h", "rollout: an interval of 7200 s does not go with a maximum wait of 3600 s"),
        ("  sticky: cookie:a;b", "line 6: rollout.sticky: 'a;b' is not the name of a cookie"),
        ("  strategy: blue", "line 6: rollout.strategy: input should be 'switch', 'canary' or 'shadow'"),
        ("  step: [1]", "line 6: unknown key 'rollout.step'; did you mean 'steps'"),
    ],
)
def test_a_wrong_rollout_block_is_refused_with_its_line(block: str, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("[", r"\[")):
        parse_model_spec(SPEC + block, "m")


def test_a_try_is_given_up_well_above_the_latency_limit_and_never_after_half_the_response_timeout() -> None:
    assert try_timeout_s(None, 30) == 15
    assert try_timeout_s(500, 30) == 5
    assert try_timeout_s(50, 30) == 1
    assert try_timeout_s(5000, 30) == 15


@given(states)
def test_a_state_is_parsed_back_as_it_was(state: RolloutState) -> None:
    assert parse_rollout(render_rollout(state), "m.json") == state


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "is of format 2"),
        ({"step": 3}, "step 3 is not one of the 3 steps"),
        ({"phase": "flying"}, "phase is 'flying'"),
        ({"canary": {"steps": [5, 1]}}, "the steps 5, 1 do not rise"),
        ({"timeline": [7]}, "timeline.0 is 7"),
    ],
)
def test_a_damaged_state_is_refused_with_its_path_and_what_to_do(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    file = RolloutFile.of(Project(tmp_path), "m")
    file.write(state())
    data = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({**data, **change}))
    with pytest.raises(FormatError, match=problem):
        parse_rollout(file.path.read_text(), "m.json")
    with pytest.raises(ServerError, match=problem):
        file.read()


def test_a_state_says_the_share_and_the_timeline_keeps_what_happened() -> None:
    rising = state().at_step(0, 1010.0)
    assert (rising.share, state().share) == (100, 0)
    assert rising.at(1020.0, "paused").share == 100
    back = rising.at(1020.0, "going back", "errors").at(1021.0, "back", "errors")
    assert (back.share, back.is_over, back.ended_s) == (0, True, 1021.0)
    assert [moment.what for moment in back.timeline] == ["1% of the requests", "going back: errors", "back: errors"]
    for second in range(3 * MOST_MOMENTS):
        rising = rising.noted(1100.0 + second, evidence={"failed": 2.0})
    assert len(rising.timeline) <= MOST_MOMENTS
    assert rising.timeline[0].what == "1% of the requests"
    assert rising.timeline[-1].at_s == 1100.0 + 3 * MOST_MOMENTS - 1


def test_a_quantile_of_a_tally_is_exact_to_five_percent_and_failed_answers_have_no_latency() -> None:
    tally = Tally()
    for ms in range(1, 101):
        tally = tally.with_answer(ms, timed=True, failed=False, slow=ms > 90, refused=False)
    tally = tally.with_answer(10_000, timed=False, failed=True, slow=False, refused=False)
    assert (tally.answers, tally.failed, tally.slow) == (101, 1, 10)
    assert tally.quantile_ms(0.5) == pytest.approx(50, rel=0.05)
    assert tally.quantile_ms(0.99) == pytest.approx(99, rel=0.05)
    assert Tally().quantile_ms(0.5) is None


def test_an_order_is_for_one_rollout_and_is_carried_out_once(tmp_path: Path) -> None:
    file = RolloutFile.of(Project(tmp_path), "m")
    file.write(state())
    assert file.pending(state()) is None
    file.order("pause", state())
    assert file.pending(state()) == "pause"
    file.carried_out()
    assert file.pending(state()) is None
    file.order("abort", state())
    assert file.pending(state(began_s=2000.0)) is None
    assert file.pending(state()) is None
    file.path.with_suffix(".order").write_text("{")
    assert file.pending(state()) is None
    assert RolloutFile.models(Project(tmp_path)) == ["m"]


def test_phases_are_open_or_ended_or_on_their_way() -> None:
    way: set[Phase] = {"promoting", "going back"}
    assert not OPEN & ENDED
    assert not (OPEN | ENDED) & way
