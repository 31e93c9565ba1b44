"""A canary whose replies are compared with those of the old version to the same requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marsmith.archive import Archive
from marsmith.config.model_spec import parse_model_spec
from marsmith.deploy.front import Copies
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic import handover, view
from marsmith.deploy.traffic.canary import Canary
from marsmith.deploy.traffic.evidence import DISAGREE, Weighing
from marsmith.deploy.traffic.shadow import Shadow
from marsmith.deploy.traffic.shadow_report import flips
from marsmith.deploy.traffic.state import Level, RolloutState, parse_rollout, render_rollout
from marsmith.errors import UsageError
from marsmith.predictions import Difference, Pair, Prediction
from marsmith.project import Project
from marsmith.state.journal import JournalFile
from support.projects import REPOSITORY
from support.rollouts import CANARY, KilledError, Logged, Memory, Scene, opened

COMPARED = replace(CANARY, compare=20.0)
DOG = {"reply": {"dog": 0.8, "cat": 0.1}}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(Project(tmp_path)).begin(COMPARED)


def run(scene: Scene, looks: int = 100, reply: Callable[[int], dict[str, Any]] = lambda number: {}) -> None:
    """Let a second pass, with 100 requests and, while copies are in force, 4 of the canary's copied, so many times."""
    for _ in range(looks):
        if scene.state.is_over:
            return
        scene.requests(100)
        if scene.memory.canary_copies:
            scene.copied(4, reply, copy="1.0")
        scene.look()


def test_a_version_that_answers_otherwise_goes_back_by_that_alone(scene: Scene) -> None:
    run(scene, reply=lambda number: DOG if number % 2 else {})
    assert (scene.state.phase, scene.memory.versions) == ("back", {"1.0": 1})
    assert "replies of 2.0 are not those of 1.0: evidence" in scene.state.reason
    assert scene.state.canary_tally.failed == 0
    assert (scene.memory.copies, scene.memory.canary_copies, scene.memory.shares) == ({}, {}, {})
    assert flips(scene.state)[0][:2] == ("cat", "dog")
    page = Path(scene.state.comparison.page)
    assert page.name == "echo-2.0-canary.html"
    assert "Flips by class" in page.read_text()
    shown = {finding["kind"]: finding for finding in view.as_data(scene.state)["evidence"]}
    assert shown[DISAGREE]["reached"]


def test_one_that_answers_the_same_is_promoted(scene: Scene) -> None:
    run(scene)
    assert (scene.state.phase, scene.memory.default) == ("promoted", "2.0")
    assert "copy 2000" in scene.memory.history
    assert view.about(scene.state)["agreement"].startswith("100.00% of")


def test_copies_begin_with_the_first_share(scene: Scene) -> None:
    run(scene, looks=1)
    assert scene.memory.canary_copies == {}
    run(scene, looks=1)
    assert scene.memory.canary_copies == {"echo": Copies("", 2000)}


def test_without_compared_replies_nothing_is_promoted(scene: Scene) -> None:
    for _ in range(100):
        scene.requests(100)
        scene.look()
    assert scene.state.phase == "inconclusive"
    assert scene.state.reason == "0 compared replies in 80 s at 50%, and 10 are needed"


def test_a_canary_that_is_not_compared_has_no_such_evidence(tmp_path: Path) -> None:
    scene = Scene(Project(tmp_path)).begin(CANARY)
    run(scene)
    assert scene.state.phase == "promoted"
    assert DISAGREE not in {row[0] for row in view.evidence_rows(scene.state)}
    assert view.as_data(scene.state)["comparison"] is None
    assert not any(what.startswith("copy") for what in scene.memory.history)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_driver_killed_after_any_change_weighs_no_reply_twice(scene: Scene, number: int) -> None:
    def die(what: str) -> None:
        if len(scene.memory.history) == number:
            raise KilledError(what)

    scene.memory.after = die
    with pytest.raises(KilledError):
        run(scene)
    scene.killed()
    run(scene)
    weighed = Weighing(scene.state).compared
    assert scene.state.phase == "promoted"
    assert weighed is not None
    # Those around the kill, and those of the last two looks, are left out.
    assert scene.number - 20 <= weighed <= scene.number


def pair(number: int, *, agrees: bool, body: int | None = None) -> tuple[Pair, Difference]:
    """Return the replies to request ``r<number>``."""
    digest = f"{number if body is None else body:064x}"
    one = Prediction(1.0, "echo", "1.0", 200, digest, {}, schema=2, key=f"r{number}")
    return Pair(one, replace(one, version="2.0")), Difference(agrees)


def weighing(canary: Canary = COMPARED) -> Weighing:
    return Weighing(RolloutState("echo", "2.0", "1.0", canary, Level(None, 5.0), began_s=1.0))


def test_of_equal_bodies_the_first_counts_and_of_a_user_one_disagreement() -> None:
    weighed = weighing()
    weighed.add_compared([pair(i, agrees=False, body=7) for i in range(50)])
    assert (weighed.compared, weighed.trouble()) == (1, None)
    weighed.add(Logged("2.0", user="u1", request_id=f"r{i}") for i in range(100, 150))
    weighed.add_compared([pair(i, agrees=False) for i in range(100, 150)])
    assert (weighed.compared, weighed.trouble()) == (2, None)
    weighed.add_compared([pair(i, agrees=False) for i in range(200, 205)])
    assert weighed.compared == 7
    assert weighed.trouble()


def test_the_allowed_rate_is_what_the_minimum_agreement_leaves() -> None:
    pairs = [pair(i, agrees=i % 10 != 0) for i in range(1000)]
    for least, goes_back in ((0.99, True), (0.8, False)):
        weighed = weighing(replace(COMPARED, min_agreement=least))
        weighed.add_compared(pairs)
        assert bool(weighed.trouble()) == goes_back


def test_the_state_is_parsed_back_as_it_was(scene: Scene) -> None:
    run(scene, looks=10)
    assert scene.state.comparison.report
    assert parse_rollout(render_rollout(scene.state), "m.json") == scene.state


@pytest.mark.parametrize(
    ("values", "message"),
    [({"compare": 0}, "a sample of 0%"), ({"compare": 101}, "a sample of 101%"), ({"min_agreement": 1}, "agreement")],
)
def test_a_comparison_that_cannot_be_made_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Canary(**values)


def test_a_spec_and_a_plan_say_it() -> None:
    text = (
        'name: m\nversion: "1.0"\nexport: {recipe: export/m.py}\nhandler: {entry_point: handlers/h.py}\n'
        "rollout: {strategy: canary, compare: 20%, min_agreement: 0.95}\n"
    )
    canary = Canary.of(parse_model_spec(text, "m").rollout)
    assert (canary.compare, canary.compared_part, canary.min_agreement) == (20, 2000, 0.95)
    assert all("20% of its replies are compared" in step.detail for step in handover.trial_steps("2.0", "1.0", canary))


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [(CANARY, None), (COMPARED, "comparison"), (Shadow(), "shadow"), (Shadow(then=COMPARED), "shadow")],
)
def test_an_archive_with_an_older_log_is_named_with_what_renews_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Canary | Shadow, kind: str | None
) -> None:
    old = Archive.open(REPOSITORY / "tests" / "old_archives" / "doubling-0.1.mar")
    monkeypatch.setattr(handover, "archive_of", lambda site, version: old)
    site = ModelServer(opened(Project(tmp_path), Memory()), JournalFile.of(Project(tmp_path), "doubling"))
    if kind is None:
        handover.check_comparable(site, strategy, old, "0.1")
        return
    with pytest.raises(UsageError) as error:
        handover.check_comparable(site, strategy, old, "0.1")
    assert error.value.message.startswith(f"no {kind} of doubling: doubling:0.1 cannot be compared: its handler has")
    assert f"marsmith repack {old.path} --renew-handlers --version" in str(error.value.tip)
