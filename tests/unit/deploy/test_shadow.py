"""Shadows without a server: what may be asked for, what follows from the replies, and each way to the end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.config.model_spec import parse_model_spec
from marsmith.config.rollout_spec import RolloutSpec, parse_sample
from marsmith.deploy.front import CopyCounts
from marsmith.deploy.traffic import view
from marsmith.deploy.traffic.canary import Canary
from marsmith.deploy.traffic.handover import trial_steps
from marsmith.deploy.traffic.listening import counted
from marsmith.deploy.traffic.shadow import GivenShadow, Shadow, Trial, conclude
from marsmith.deploy.traffic.shadowing import SETTLE_S
from marsmith.deploy.traffic.state import parse_rollout, render_rollout
from marsmith.errors import ServerError, SpecError, UsageError
from marsmith.predictions import Comparison
from marsmith.predictions.comparison import Report
from marsmith.project import Project
from marsmith.statistics import rate_interval
from support.rollouts import CANARY, KilledError, Scene

SHADOW = Shadow(sample=10, time_s=60, min_agreement=0.9)
SPEC = """\
name: m
version: "1.0"
export: {recipe: export/m.py}
handler: {entry_point: handlers/m_handler.py}
rollout:
"""
DOG = {"reply": {"dog": 0.9}}
CAT = {"reply": {"cat": 0.9}}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(Project(tmp_path)).begin().shadow(SHADOW)


def run(scene: Scene, looks: int = 70, per_look: int = 20, **other: Any) -> None:
    for _ in range(looks):
        if scene.state.is_over:
            return
        if scene.memory.copies and scene.memory.copies["echo"].part:
            scene.copied(per_look, **other)
        scene.look()


def report(agreed: int = 0, compared: int = 0, **other: Any) -> Report:
    empty = Comparison("1.0", "2.0").report()
    return replace(empty, pairs=compared, agreement=rate_interval(agreed, compared), **other)


# What may be asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample": 0}, "a sample of 0% is not above 0% and at most 100%"),
        ({"sample": 101}, "a sample of 101%"),
        ({"sample": 0.001}, "more than two decimals"),
        ({"sample": math.nan}, "is not above 0%"),
        ({"time_s": 0}, "is not above 0 s"),
        ({"min_agreement": 1}, "a minimum agreement of 1 is not above 0 and below 1"),
        ({"min_agreement": 0}, "a minimum agreement of 0"),
    ],
)
def test_a_shadow_that_cannot_be_run_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Shadow(**values)


@pytest.mark.parametrize("text", ["10", "", "%", "ten%", "-1%", "1e1%", "10 %", "0%", "100.01%", "0.001%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"percentage|sample"):
        parse_sample(text)


def test_a_spec_describes_a_shadow_and_options_override_it() -> None:
    text = SPEC + "  {strategy: shadow, sample: 25%, for: 2m, min_agreement: 0.95, then: canary, steps: [50]}"
    rollout = parse_model_spec(text, "m").rollout
    assert Shadow.of(rollout) == Shadow(25, 120, 0.95, Canary(steps=(50,), min_agreement=0.95))
    given_ = GivenShadow({"time_s": 30.0}, {"steps": (5, 50)})
    assert Shadow.of(rollout, given_) == Shadow(25, 30, 0.95, Canary(steps=(5, 50), min_agreement=0.95))
    given_ = GivenShadow({"min_agreement": 0.9}, {"compare": 5.0})
    assert Shadow.of(rollout, given_).then == Canary(steps=(50,), compare=5, min_agreement=0.9)
    assert Shadow.of(RolloutSpec()) == Shadow() == Shadow(10, 1800, 0.99)
    assert Shadow.of(RolloutSpec(), GivenShadow(then="canary")).then == Canary()
    assert Shadow(33.33).part == 3333


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("  sample: 10", "line 6: rollout.sample: input should be a valid string"),
        ("  sample: ten", "line 6: rollout.sample: 'ten' is not a percentage; write a number with its sign"),
        ("  for: 3", "line 6: rollout.for: input should be a valid string"),
        ("  min_agreement: 1.0", "line 6: rollout.min_agreement: a minimum agreement of 1 is not"),
        ("  then: switch", "line 6: rollout.then: input should be 'canary'"),
    ],
)
def test_a_wrong_shadow_in_a_spec_is_refused_with_its_line(block: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_model_spec(SPEC + block, "m")


def test_the_plan_says_what_is_copied_and_when_a_canary_follows() -> None:
    assert [step.action for step in trial_steps("2.0", "1.0", SHADOW)] == ["shadow"]
    steps = trial_steps("2.0", "1.0", replace(SHADOW, then=Canary(steps=(5, 50))))
    assert [step.action for step in steps] == ["shadow", "shadow", "canary", "canary"]
    assert steps[0].detail.startswith("copy 10% of the requests to it for 60 s")
    assert steps[1].detail == "go on if the agreement is at least 90.00%"
    assert trial_steps("2.0", "1.0", "switch") == ()


# What follows from the replies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trial", "kind"),
    [
        (Trial(), "inconclusive"),
        (Trial(report=report()), "inconclusive"),
        (Trial(copied=1000, report=report(1000, 1000)), "agrees"),
        (Trial(copied=10, report=report(10, 10)), "inconclusive"),
        (Trial(copied=1000, report=report(500, 1000)), "disagrees"),
        (Trial(copied=1000, report=report(905, 1000)), "inconclusive"),
        # Those that were answered agree; most of the copies were not answered, or failed on the new version alone.
        (Trial(copied=5000, report=report(1000, 1000)), "disagrees"),
        (Trial(copied=1000, report=replace(report(200, 200, failed=(0, 800, 0)), pairs=1000)), "disagrees"),
        # Copies that were dropped on purpose were not sent, and failures of the old version say nothing.
        (Trial(copied=1000, dropped=5000, report=report(1000, 1000)), "agrees"),
        (Trial(copied=1000, report=replace(report(900, 900, failed=(50, 0, 50)), pairs=1000)), "agrees"),
    ],
)
def test_a_shadow_is_judged_by_the_ends_of_the_interval_over_all_of_its_copies(trial: Trial, kind: str) -> None:
    assert conclude(SHADOW, trial).kind == kind


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 3000), st.floats(0.01, 0.99))
def test_a_canary_follows_only_if_the_lower_end_is_at_least_the_minimum(
    agreed: int, others: int, lost: int, least: float
) -> None:
    compared = agreed + others
    trial = Trial(copied=compared + lost, report=report(agreed, compared))
    found = conclude(Shadow(min_agreement=least), trial)
    lower = rate_interval(agreed, compared + lost).lower
    assert (found.kind == "agrees") == (compared + lost > 0 and lower >= least)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans())))
def test_copies_are_counted_once_also_if_the_front_begins_anew(looks: list[tuple[int, int, bool]]) -> None:
    trial, sent, dropped = Trial(), 0, 0
    for more, lost, restarted in looks:
        # A start that is not noticed would need as many copies again before the next look.
        sent, dropped = (0, 0) if restarted else (sent + more, dropped + lost)
        trial = counted(trial, CopyCounts(sent, dropped))
    assert trial.copied == sum(more for more, _, restarted in looks if not restarted)
    assert trial.dropped == sum(lost for _, lost, restarted in looks if not restarted)


# Each way to the end --------------------------------------------------------------------------------------------------


def test_a_shadow_runs_for_its_time_is_reported_and_taken_off_with_everything_as_it_was(scene: Scene) -> None:
    run(scene, reply=lambda number: DOG if number % 10 == 0 else CAT)
    assert scene.memory.history == ["copy 1000", "copy 0", "copy none", "unregister 2.0"]
    state = scene.state
    assert (state.phase, scene.memory.default, scene.memory.versions) == ("compared", "1.0", {"1.0": 1})
    assert scene.journal.change is None
    found = state.trial.report
    assert found
    assert (found.pairs, state.trial.copied, state.trial.unanswered, found.alone) == (
        state.trial.copied,
        scene.number,
        0,
        (0, 0),
    )
    assert found.agreement.rate == pytest.approx(0.9, abs=0.01)
    assert found.flips[0][:2] == ("cat", "dog")
    page = Path(state.trial.page)
    assert "<h2>Flips by class</h2>" in page.read_text()
    written = json.loads(page.with_suffix(".json").read_text())
    assert written["copied"] == scene.number
    assert written["report"]["flips"][0]["count"] == scene.number // 10
    shown = json.loads(json.dumps(view.as_data(state)["shadow"]))
    assert written == {"model": "echo", **shown, "page": "echo-2.0.html"}
    about = view.about(state)
    assert about["copies"] == f"10% of the requests: {scene.number:,} sent, 0 dropped"
    assert about["report"] == str(page)


def test_a_canary_follows_a_shadow_that_agrees_and_none_that_does_not(scene: Scene, tmp_path: Path) -> None:
    scene.shadow(replace(SHADOW, then=CANARY))
    run(scene, looks=65)
    assert (scene.state.phase, scene.state.share) == ("rising", 500)
    assert scene.memory.history == ["copy 1000", "copy 0", "copy none", "share 500"]
    assert scene.state.trial.page
    scene.until_over()
    assert (scene.state.phase, scene.memory.default) == ("promoted", "2.0")
    other = Scene(Project(tmp_path / "other")).begin().shadow(replace(SHADOW, then=CANARY))
    run(other, reply=lambda number: DOG if number % 5 == 0 else CAT)
    assert other.state.phase == "back"
    assert other.state.reason.startswith("disagrees: agreement 80")
    assert not [what for what in other.memory.history if what.startswith("share")]


@pytest.mark.parametrize("per_look", [0, 1])
def test_a_shadow_with_too_few_requests_never_goes_on(scene: Scene, per_look: int) -> None:
    scene.shadow(replace(SHADOW, min_agreement=0.99, then=CANARY))
    run(scene, looks=100, per_look=per_look)
    assert scene.state.phase == "back"
    assert scene.state.reason.startswith("inconclusive: ")
    assert scene.memory.versions == {"1.0": 1}


def test_a_version_that_never_answers_does_not_pass_and_is_waited_for_no_longer_than_it_takes(scene: Scene) -> None:
    scene.shadow(replace(SHADOW, then=CANARY))
    scene.memory.counts = CopyCounts(under_way=8)
    run(scene, looks=62, reply=lambda number: CAT if number % 2 else None)
    assert scene.state.phase == "settling"
    run(scene, looks=int(SETTLE_S) + 2)
    assert scene.state.phase == "back"
    assert scene.state.reason.startswith("disagrees: agreement 50")
    assert scene.state.trial.unanswered == scene.number // 2


def test_an_abort_ends_the_copies_and_writes_the_report(scene: Scene) -> None:
    run(scene, looks=20)
    scene.file.order("abort", scene.state)
    scene.look()
    scene.look()
    assert (scene.state.phase, scene.state.reason) == ("back", "aborted by an operator")
    assert scene.memory.history == ["copy 1000", "copy 0", "copy none", "unregister 2.0"]
    assert scene.state.trial.report
    assert scene.state.trial.report.pairs == scene.number
    assert Path(scene.state.trial.page).exists()


def test_orders_that_need_no_shares(scene: Scene, tmp_path: Path) -> None:
    run(scene, looks=5)
    scene.file.order("promote", scene.state)
    scene.look()
    scene.look()
    assert (scene.state.phase, scene.memory.default, scene.memory.copies) == ("promoted", "2.0", {})
    other = Scene(Project(tmp_path / "other")).begin().shadow(SHADOW)
    run(other, looks=5)
    other.file.order("leave", other.state)
    other.look()
    assert (other.state.phase, set(other.memory.versions), other.memory.copies) == ("left", {"1.0", "2.0"}, {})


def test_an_old_version_above_its_own_limit_ends_the_shadow(tmp_path: Path) -> None:
    scene = Scene(Project(tmp_path)).begin(p99_ms=50.0).shadow(SHADOW)
    for _ in range(20):
        scene.requests(50, duration_ms=200.0)
        scene.look()
    assert scene.state.phase == "back"
    assert "1.0 itself is above its limit" in scene.state.reason


@pytest.mark.parametrize("number", range(1, 5))
def test_a_driver_killed_after_any_change_is_followed_by_one_that_counts_everything_once(
    scene: Scene, number: int
) -> None:
    def die(what: str) -> None:
        if len(scene.memory.history) == number:
            raise KilledError(what)

    scene.memory.after = die
    with pytest.raises(KilledError):
        run(scene)
    scene.killed()
    run(scene, looks=100)
    assert (scene.state.phase, scene.memory.versions, scene.memory.copies) == ("compared", {"1.0": 1}, {})
    assert scene.journal.change is None
    assert scene.state.trial.report
    assert scene.state.trial.report.pairs == scene.state.trial.copied == scene.number


def test_a_front_or_a_log_that_cannot_be_read_ends_no_shadow_before_its_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: str, *, of_canary: bool = False) -> CopyCounts:
        raise ServerError("Envoy does not answer")

    run(scene, looks=5)
    with monkeypatch.context() as patch:
        patch.setattr(scene.memory, "copy_counts", broken)
        run(scene, looks=5)
        assert scene.told.count("echo:2.0: Envoy does not answer") == 1
    run(scene)
    assert scene.state.phase == "compared"
    assert scene.state.trial.unanswered == 0


def test_what_was_logged_before_or_by_others_is_not_compared(scene: Scene) -> None:
    scene.copied(50)
    scene.memory.counts = CopyCounts()
    scene.look()
    # A request that names the new version is no copy.
    scene.copied(10, reply=lambda number: {**CAT, "shadow": False})
    scene.look()
    found = scene.state.trial.report
    assert found
    assert (found.pairs, found.alone) == (0, (10, 0))


def test_the_state_of_a_shadow_is_parsed_back_as_it_was(scene: Scene) -> None:
    run(scene, looks=3)
    state = scene.state
    assert state.trial.report
    assert parse_rollout(render_rollout(state), "m.json") == state
    assert view.sentence(state).startswith("rollout of echo: 2.0 gets copies of 10% of the requests, 1.0 answers; shad")
