"""The tuner: a simulation of the batching, the choice of what to try, and a search on a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith import strict_yaml
from marsmith.archive import Archive, Manifest, Member, write_archive
from marsmith.cli import main
from marsmith.errors import ConfigError
from marsmith.inputs import Input
from marsmith.loadtest.driver import arrivals
from marsmith.loadtest.tune.plot import plot_trials
from marsmith.loadtest.tune.queue_model import latencies, predicted_rate
from marsmith.loadtest.tune.rates import largest_rate, majority_of_three, schedule
from marsmith.loadtest.tune.search import (
    LoadPrediction,
    Trial,
    TrialLoad,
    best,
    first_rate,
    halve,
    in_turns,
    most_promising,
    next_rate,
    pareto_front,
)
from marsmith.loadtest.tune.setup import Placement, ServiceTime, Setup, placements, setups
from marsmith.loadtest.tune.tune import TuneOptions, Tuning, advice, tune
from marsmith.loadtest.tune.variant import VariantMaker, changed_config
from support.live_server import make_project, tiny_archive
from support.projects import REPOSITORY

ONE = Placement(0, 1, 2)
TWO = Placement(0, 2, 1)

# A batch takes 10 ms and 4 ms an item, much longer than a busy machine is late, and any number of workers can do so at
# once: sleeping needs no core.
SLEEPY = """
import time

def handle(data, context):
    if data is None:
        return None
    time.sleep(0.01 + 0.004 * len(data))
    return ["ok"] * len(data)
"""


def _setup(batch: int = 8, delay: int = 1, placement: Placement = ONE) -> Setup:
    return Setup(placement, batch, delay)


def _trial(setup: Setup, rate: float, p99: float = 10, seconds: float = 3, **more: Any) -> Trial:
    return Trial(setup, seconds, rate, p99, **more)


# The simulation -------------------------------------------------------------------------------------------------------


def test_a_lone_request_waits_for_the_whole_delay_unless_batches_are_of_one() -> None:
    alone: dict[str, Any] = {"due": [0.0], "service_s": lambda _: 0.005, "workers": 1, "max_batch_delay_s": 0.1}
    assert latencies(batch_size=8, **alone) == [pytest.approx(0.105)]
    assert latencies(batch_size=1, **alone) == [pytest.approx(0.005)]


def test_a_full_batch_leaves_at_once_and_the_next_one_queues() -> None:
    took = latencies([0.0] * 4, lambda size: 0.01 * size, workers=1, batch_size=2, max_batch_delay_s=1.0)
    assert took == pytest.approx([0.02, 0.02, 0.04, 0.04])


def test_only_one_worker_at_a_time_gathers_a_batch() -> None:
    # The second request comes while the first waits for company: it joins, and the other worker stays idle.
    took = latencies([0.0, 0.05], lambda _: 0.01, workers=2, batch_size=8, max_batch_delay_s=0.1)
    assert took == pytest.approx([0.11, 0.06])


@given(
    rate=st.floats(5, 400),
    workers=st.integers(1, 4),
    batch=st.integers(1, 16),
    delay=st.floats(0, 0.05),
    seed=st.integers(0, 50),
)
@settings(max_examples=40)
def test_no_request_is_faster_than_its_service_and_none_is_lost(
    rate: float, workers: int, batch: int, delay: float, seed: int
) -> None:
    due = arrivals("poisson", rate, 2, seed=seed)
    took = latencies(due, lambda size: 0.01 + 0.001 * size, workers=workers, batch_size=batch, max_batch_delay_s=delay)
    assert len(took) == len(due)
    assert all(seconds > 0.0109 for seconds in took)


def test_the_predicted_rate_knows_what_batches_workers_and_limits_are_worth() -> None:
    def rate(workers: int = 1, batch: int = 8, delay: float = 0.001, p99: float = 0.05) -> float:
        return predicted_rate(
            lambda size: 0.008 + 0.002 * size, workers=workers, batch_size=batch, max_batch_delay_s=delay, p99_s=p99
        )

    assert rate(batch=1) < 100 < rate(batch=8) < 8 / 0.024
    assert rate(workers=2) > 1.5 * rate(workers=1)
    assert rate(p99=0.2) > rate(p99=0.05) > rate(p99=0.03)
    assert rate(delay=0.04) < rate(delay=0.001)
    assert rate(p99=0.005) == 0


def test_between_measured_sizes_the_time_is_linear_and_beyond_them_proportional() -> None:
    time_of = ServiceTime({1: 0.01, 4: 0.025, 8: 0.04})
    assert [time_of(size) for size in (1, 2, 4, 6, 16)] == pytest.approx([0.01, 0.015, 0.025, 0.0325, 0.08])
    assert time_of.most_per_second == pytest.approx(200)


# The choice -----------------------------------------------------------------------------------------------------------


def test_cores_are_shared_out_in_every_sensible_way() -> None:
    assert placements(2) == [Placement(0, 1, 1), Placement(0, 1, 2), Placement(0, 2, 1)]
    assert Placement(0, 4, 2) in placements(8)
    assert Placement(0, 3, 1) in placements(3)
    assert all(each.workers * each.threads <= 6 for each in placements(6))
    assert len(setups([ONE], [1, 8], [1, 5])) == 3


def test_what_differs_in_its_delay_only_is_tried_last() -> None:
    made = [
        LoadPrediction(Setup(placement, batch, delay), 100 - 10 * placement.workers - delay)
        for placement in (ONE, TWO)
        for batch in (2, 4)
        for delay in (1, 2)
    ]
    chosen = most_promising(sorted(made, key=lambda each: -each.rate), 4)
    assert {(each.placement, each.batch_size) for each in chosen} == {(ONE, 2), (ONE, 4), (TWO, 2), (TWO, 4)}
    assert {each.max_batch_delay_ms for each in chosen} == {1}


def test_of_delays_that_are_predicted_alike_the_smallest_is_tried() -> None:
    made = [LoadPrediction(_setup(2, delay), rate) for delay, rate in ((20, 217), (5, 216), (1, 215))]
    made += [LoadPrediction(_setup(8, delay), rate) for delay, rate in ((20, 200), (1, 150))]
    assert most_promising(made, 4)[:2] == (_setup(2, 1), _setup(8, 20))


def test_halving_spends_most_time_on_the_best_and_finds_it() -> None:
    candidates = [_setup(batch) for batch in (1, 2, 4, 8, 16, 32)]
    dropped: list[Setup] = []
    trials = halve(
        candidates,
        lambda setup, offer: _trial(setup, offer.rate, 50 + abs(setup.batch_size - 8), offer.seconds),
        p99_ms=50,
        rate=100,
        seconds=3,
        on_done=dropped.append,
    )
    winner = best(trials, 50)
    assert winner is not None
    assert winner.setup == _setup(8)
    assert [sum(trial.setup == each for trial in trials) for each in candidates] == [1, 2, 3, 3, 1, 1]
    assert winner.seconds == pytest.approx(12)
    assert set(dropped) == set(candidates) - {_setup(8)}


def test_a_set_up_over_the_limit_or_with_failures_does_not_win() -> None:
    over, failing, right = _trial(_setup(32), 200, 100), _trial(_setup(16), 300, 10, failed=1), _trial(_setup(8), 120)
    assert [trial.score(50) for trial in (over, failing, right)] == [100, 0, 600]
    assert best([over, failing, right], 50) == right
    assert best([failing], 50) is None
    assert _trial(_setup(), 0, float("nan"), reason="does not load").score(50) == 0


def test_the_pareto_front_holds_what_nothing_beats_in_both() -> None:
    a, b, c = _trial(_setup(1), 80, 10), _trial(_setup(8), 120, 40), _trial(_setup(4), 79, 30)
    assert pareto_front([c, b, a]) == (a, b)


def test_all_of_a_round_are_tried_at_one_rate_which_moves_to_where_the_best_reaches_the_limit() -> None:
    offers: list[TrialLoad] = []

    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        offers.append(offer)
        return _trial(setup, offer.rate, offer.rate / 2 + setup.batch_size, offer.seconds)

    halve([_setup(batch) for batch in (1, 2, 4, 8)], attempt, p99_ms=50, rate=40, seconds=3)
    assert {(offer.seconds, offer.rate) for offer in offers} == {(1, 40), (2, 50)}


def test_one_bad_moment_of_the_machine_decides_nothing() -> None:
    moment = iter(range(100))

    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        pause = 400.0 if next(moment) == 0 else 0.0
        return _trial(setup, offer.rate, 20 + setup.batch_size + pause, offer.seconds)

    made = in_turns([_setup(1), _setup(8)], attempt, TrialLoad(100, 3))
    assert [(trial.p99_ms, trial.seconds) for trial in made] == [(21, 3), (28, 3)]


def test_in_a_turn_all_meet_the_same_arrivals_and_each_goes_first_once() -> None:
    met: list[tuple[int, int]] = []

    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        met.append((offer.seed, setup.batch_size))
        return _trial(setup, 100, 10, offer.seconds)

    in_turns([_setup(1), _setup(8)], attempt, TrialLoad(100, 3))
    assert met == [(0, 1), (0, 8), (1, 8), (1, 1), (2, 1), (2, 8)]


def test_a_set_up_that_does_not_load_is_not_tried_again() -> None:
    tries: list[Setup] = []

    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        tries.append(setup)
        return _trial(setup, 0, float("nan"), offer.seconds, reason="does not load", failed=0)

    (made,) = in_turns([_setup(1)], attempt, TrialLoad(100, 3))
    assert made.reason == "does not load"
    assert len(tries) == 1


def test_the_rate_moves_half_the_way_and_never_far() -> None:
    def moved(p99_ms: float, **more: Any) -> float:
        return next_rate(100, _trial(_setup(), 100, p99_ms, **more), 50)

    assert moved(50) == 100
    assert moved(72) == pytest.approx(100 * (50 / 72) ** 0.5)
    assert (moved(1), moved(9000)) == (125, 50)
    assert moved(10, failed=3) == 100


def test_trials_begin_near_what_is_predicted_and_where_nothing_is_at_half_of_what_workers_can_do() -> None:
    predictions = [LoadPrediction(_setup(1), 100), LoadPrediction(_setup(2), 200)]
    times = {ONE: ServiceTime({1: 0.02, 8: 0.1})}
    assert first_rate(predictions, times) == pytest.approx(140)
    assert first_rate([LoadPrediction(_setup(), 0.0)], times) == pytest.approx(40)


@given(most=st.floats(5, 500), start=st.floats(5, 500))
def test_the_largest_rate_is_found_from_wherever_the_search_begins(most: float, start: float) -> None:
    tried: list[float] = []

    def attempt(rate: float) -> float | None:
        tried.append(rate)
        return rate if rate <= most else None

    found, seen = largest_rate(attempt, start, steps=16)
    assert found == seen
    assert found <= most < 1.05 * found
    assert len(set(tried)) == len(tried)


def test_where_no_rate_holds_none_is_named() -> None:
    assert largest_rate(lambda _: None, 100, steps=4) == (0.0, None)


@pytest.mark.parametrize(
    ("answers", "held", "attempts"),
    [
        ([1, 2], 2, 2),
        ([None, None], None, 2),
        ([1, None, 3], 1, 3),
        ([None, 2, None], None, 3),
        ([None, 2, 3], 2, 3),
    ],
)
def test_two_of_three_attempts_decide(answers: list[int | None], held: int | None, attempts: int) -> None:
    left = list(answers)
    assert majority_of_three(lambda: left.pop(0)) == held
    assert len(answers) - len(left) == attempts


def test_more_time_buys_more_trials() -> None:
    def trials(left_s: float, setups: int = 100) -> int:
        return schedule(5, left_s=left_s, rate=100, setups=setups).trials

    assert trials(10) == 2
    assert 5 < trials(250) < trials(600) == 16
    assert trials(600, setups=3) == 3


def test_a_slow_model_is_tried_for_longer_and_with_fewer_set_ups() -> None:
    fast, slow, slowest = (schedule(5, left_s=250, rate=rate, setups=100) for rate in (100, 10, 0.1))
    assert (fast.trial_s, slow.trial_s, slowest.trial_s) == (4.5, 5, 15)
    assert fast.trials > slow.trials > slowest.trials == 3
    assert fast.verify_s == slow.verify_s < slowest.verify_s == 20


# Archives and advice --------------------------------------------------------------------------------------------------


@pytest.mark.tensors
def test_a_variant_differs_in_how_it_is_run_only(default_archive: Path, tmp_path: Path) -> None:
    variant = VariantMaker(default_archive, tmp_path).write(_setup(4, 2, TWO), tmp_path / "v.mar")
    old, new = Archive.open(default_archive), Archive.open(variant)
    config = strict_yaml.load_mapping(new.text("model-config.yaml") or "", "v", ConfigError)
    assert (config["minWorkers"], config["batchSize"], config["maxBatchDelay"]) == (2, 4, 2)
    assert config["handler"]["threads"] == 1
    assert config["handler"]["top_k"] == 5
    assert new.manifest.model_version == "a0-w2-t1-b4-d2"
    digests = {name: new.member_digests()[name] for name in new.members if name.endswith((".pt", ".py", ".json"))}
    assert all(old.member_digests()[name] == digest for name, digest in digests.items() if "MANIFEST" not in name)


def test_a_member_that_is_only_called_like_a_model_config_stays_as_it_is(tmp_path: Path) -> None:
    other = Member("model-config.yaml", b"- of the handler's own\n")
    manifest = Manifest("toy", "1.0", "h.py")
    write_archive(manifest, [Member("h.py", b"def handle(data, context): return data\n"), other], tmp_path / "toy.mar")
    (tmp_path / "scratch").mkdir()
    new = Archive.open(VariantMaker(tmp_path / "toy.mar", tmp_path / "scratch").write(_setup(), tmp_path / "v.mar"))
    assert new.read("model-config.yaml") == other.source
    assert new.manifest.config_file == "0-model-config.yaml"
    assert "batchSize: 8" in (new.text("0-model-config.yaml") or "")


def test_a_config_without_our_block_gets_one() -> None:
    config = strict_yaml.load_mapping(changed_config("{}", _setup()), "c", ConfigError)
    assert config["handler"] == {"threads": 2}
    shorter = strict_yaml.load_mapping(changed_config("{}", _setup(), {"warm_up_s": 0.1}), "c", ConfigError)
    assert shorter["handler"] == {"threads": 2, "warm_up_s": 0.1}
    assert config["jobQueueSize"] == 1000


def _tuning(**changed: Any) -> Tuning:
    options = TuneOptions((Path("a.mar"),), (), p99_ms=50, rps=400, minutes=1, cores=2)
    times = {ONE: ServiceTime({1: 0.006, 8: 0.036})}
    values: dict[str, Any] = {"times": times, "chosen": _trial(_setup(), 150, 45), "held_rps": 100.0, **changed}
    return Tuning(options, predictions=(), trials=(), held=None, at_rps=None, seconds=1, **values)


def test_a_level_that_cannot_be_met_gets_an_honest_answer() -> None:
    assert not _tuning().is_met
    assert "about 8 cores" in advice(_tuning())[0]
    slow = advice(_tuning(times={ONE: ServiceTime({1: 0.09})}))
    assert "a request alone takes 90 ms" in slow[0]


def test_the_queue_is_no_longer_than_what_can_be_answered_in_time() -> None:
    assert _tuning().serving()["jobQueueSize"] == 445
    assert _tuning().handler_settings() == {"threads": 2}


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_trials_are_drawn(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"trials{suffix}"
    plot_trials([_trial(_setup(1), 80, 10), _trial(_setup(8), 120, 40)], 50, target)
    content = target.read_bytes()
    assert content.startswith(b"\x89PNG") if suffix == ".png" else b"1x2 b8 d1" in content or b"<svg" in content


# A real server --------------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_on_a_real_server_batches_win_where_they_are_cheap(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    archive = tiny_archive(tmp_path / "sleepy.mar", name="sleepy", handler=SLEEPY)
    options = TuneOptions(
        archives=(archive,),
        inputs=(Input("x", None, b"x", "text/plain"),),
        p99_ms=200,
        rps=20,
        minutes=0.1,
        cores=1,
        batch_sizes=(1, 8),
        delays_ms=(1,),
        most_trials=2,
    )
    steps: list[str] = []
    tuning = tune(project, options, steps.append)
    (only,) = tuning.times.values()
    assert 0.01 < only(1) < only(8) < 1
    assert tuning.predictions[0].setup.batch_size == 8
    assert {trial.setup.batch_size for trial in tuning.trials} == {1, 8}
    assert all(not trial.reason and not trial.failed for trial in tuning.trials)
    assert tuning.serving()["minWorkers"] == 1
    assert tuning.at_rps is not None
    assert tuning.at_rps.failed == 0
    assert any(step.startswith("verifying") for step in steps)


def test_write_needs_a_model_and_a_limit_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(REPOSITORY)
    archive = tiny_archive(tmp_path / "a.mar")
    assert main(["tune", str(archive), "--p99-ms", "50", "--write"]) == 2
    assert main(["tune", str(archive)]) == 2
    assert main(["tune", str(archive), "--p99-ms", "50"]) == 2
    err = capsys.readouterr().err
    assert "--write needs a model" in err
    assert "no latency limit" in err
    assert "no example request" in err
