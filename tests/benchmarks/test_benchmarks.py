"""The benchmarks' pure parts, and that each says how it is run; what they measure is measured by themselves."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.projects import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
sys.path.append(str(BENCHMARKS))

# Whatever is only needed by what they measure must not be needed to ask for help, or for these tests.
from marsmith.loadtest.measurement import Measurement  # noqa: E402
from marsmith.loadtest.tune.search import LoadPrediction, Trial  # noqa: E402
from marsmith.loadtest.tune.setup import Setup, placements, setups  # noqa: E402
from peer_servers.peer_model import PeerSettings  # noqa: E402
from tuner_replay import OURS as OUR_SEARCH  # noqa: E402
from tuner_replay import count_for, our_choice, random_choice, regret, regret_table, trials_of  # noqa: E402
from turns import Cell, Row, best, records, table, top_label, verdicts  # noqa: E402

FILES = ("peers.py", "tuner.py", "gpu.py", "rollout.py", "drift.py", "traffic.py")


@pytest.mark.parametrize("file", FILES)
def test_a_benchmark_says_how_it_is_run(file: str) -> None:
    run = subprocess.run([sys.executable, BENCHMARKS / file, "--help"], capture_output=True, text=True, check=True)
    assert f"python benchmarks/{file}" in run.stdout
    assert "--json" in run.stdout


def test_figures_of_a_gpu_are_refused_where_there_is_none() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "sees no CUDA device" in run.stderr
    assert not run.stdout


# Servers that take turns ----------------------------------------------------------------------------------------------


def row(server: str, setup: str, *rates: float, p99_ms: float = 10.0, errors: dict[str, int] | None = None) -> Row:
    return Row(server, setup, {8: Cell(rates, (p99_ms,) * len(rates), errors or {})})


def test_the_best_set_up_is_the_one_with_the_largest_median() -> None:
    steady, lucky = row("a", "steady", 100, 101, 102), row("a", "lucky", 300, 50, 60)
    assert best([steady, lucky], "a", 8) is steady
    assert steady.cells[8].rate == 101
    assert lucky.cells[8].spread == pytest.approx(250 / 60)


def test_a_set_up_that_drops_requests_is_not_the_best() -> None:
    quick, sound = row("a", "quick", 500, errors={"503": 3}), row("a", "sound", 100)
    assert best([quick, sound], "a", 8) is sound
    assert best([quick], "a", 8) is None
    assert "500, failed: 3" in table([quick, sound], (8,))[2]


def test_we_are_judged_against_the_best_of_all_peers() -> None:
    rows = [
        row("marsmith", "1 x 2", 120),
        row("slow", "1 x 2", 60),
        row("fast", "2 x 1", 110),
        row("fast", "1 x 2", 90),
    ]
    (found,) = verdicts(rows, (8,), {8: 1.1})
    assert found.peer == "fast, 2 x 1"
    assert found.ratio == pytest.approx(120 / 110)
    assert not found.is_met
    assert "NOT MET" in str(found)
    assert [target["value"] for target in found.targets("x")] == [pytest.approx(120 / 110), 1.0]


def test_how_far_ahead_of_a_peer_any_server_could_be_stands_beside_it() -> None:
    rows = [Row(name, "", {n: Cell((100.0,), (10.0,)) for n in (1, 8)}) for name in ("marsmith", "peer")]
    alone, batched = verdicts(rows, (1, 8), {8: 1.1}, limit=107.0)
    assert alone.most is None
    assert batched.most == pytest.approx(1.07)
    assert "with no server at all: 1.07 times; goal 1.1 times at no higher p99: NOT MET" in str(batched)
    assert [target.get("most") for target in batched.targets("x")] == [pytest.approx(1.07), None]


def test_a_missed_target_stands_beside_what_the_run_leaves_room_for(tmp_path: Path) -> None:
    from report import render_page

    results = stored_results()
    results["peers"]["targets"] = [{"what": "8 clients", "goal": 1.1, "value": 1.02, "most": 1.07}]
    assert "| 8 clients | >= 1.1 | 1.02 | **not met** | 1.07 |" in render_page(results, tmp_path)


def test_where_a_peer_is_faster_the_verdict_says_behind() -> None:
    (found,) = verdicts([row("marsmith", "", 90), row("peer", "", 100)], (8,), {8: 1.1})
    assert "BEHIND" in str(found)


def test_more_requests_at_a_higher_latency_do_not_meet_the_goal() -> None:
    rows = [row("marsmith", "", 200, p99_ms=30), row("peer", "", 100, p99_ms=20)]
    (found,) = verdicts(rows, (8,), {8: 1.1})
    assert found.ratio == 2
    assert not found.is_met


def test_the_table_shows_rates_latencies_and_the_share_of_ours() -> None:
    lines = table([row("marsmith", "1 x 2", 198, 200, 202), row("peer", "2 x 1", 100, 100, 100)], (8,))
    assert lines[2] == "| marsmith | 1 x 2 | **200 ±1%** | 10 | 1.00 |"
    assert lines[3] == "| peer | 2 x 1 | **100 ±0%** | 10 | 0.50 |"


def test_a_server_that_did_not_start_is_shown_as_such_and_costs_no_one_else_the_table() -> None:
    failed = Row("peer", "1 x 2", {}, "does not answer:\nTraceback")
    lines = table([row("marsmith", "", 100), failed], (8,))
    assert "did not start: does not answer:" in lines[3]
    assert lines[3].count("|") == lines[2].count("|")
    assert verdicts([row("marsmith", "", 100), failed], (8,), {}) == []


def test_figures_that_are_none_become_null_in_json() -> None:
    (found,) = records([row("a", "", 0.0, p99_ms=math.nan)])
    assert found["clients"]["8"]["p99Ms"] == [None]


def test_the_best_label_is_found_in_every_servers_reply() -> None:
    assert top_label(b'{"cat": 0.9, "dog": 0.1}') == "cat"
    assert top_label(b'[{"cat": 0.9}]') == "cat"
    assert top_label(b"[1, 2]") is None
    assert top_label(b"oops") is None


def test_set_ups_without_hope_are_not_tried_again() -> None:
    from contenders import Contender
    from turns import promising

    def contender(name: str, note: str) -> Contender:
        return Contender(name, lambda: pytest.fail("no server starts here"), note)

    def measured(rate: float) -> dict[int, Measurement]:
        return {8: Measurement(1, {}, 1.0, rate, 1.0, {0.99: 1.0}, 1.0, 0.0, 0.0)}

    good, bad, other = contender("a", "good"), contender("a", "bad"), contender("b", "only")
    found = {good: [measured(100)], bad: [measured(50)], other: [measured(10)]}
    assert promising([good, bad, other], found) == [good, other]


def test_settings_reach_a_peer_through_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from peer_servers.peer_model import read_settings

    settings = PeerSettings("/folder", 1234, 2, 1, batch_size=8, timeout_ms=10, payload="json", option="fast_queue")
    for name, value in settings.variables().items():
        monkeypatch.setenv(name, value)
    assert read_settings() == settings
    assert settings.variables()["OMP_NUM_THREADS"] == "1"


def test_a_photo_goes_as_each_peer_takes_it() -> None:
    import email

    from peer_setups import target_of

    photo = b"\xff\xd8\r\n--photo\r\n"
    settings = PeerSettings("", 80, 1, 1, payload="multipart")
    target = target_of("LitServe", settings, [photo])
    message = email.message_from_bytes(f"Content-Type: {target.content_types[0]}\r\n\r\n".encode() + target.bodies[0])
    (part,) = message.walk() if not message.is_multipart() else list(message.walk())[1:]
    assert part.get_payload(decode=True) == photo
    assert part.get_param("name", header="content-disposition") == "image"


# Searches on a table --------------------------------------------------------------------------------------------------


def a_table() -> dict[Setup, Trial]:
    """More threads and larger batches are faster; the best is 2 threads with batches of 16."""
    return {
        each: Trial(each, 3.0, 50.0 * each.placement.workers * each.placement.threads + each.batch_size, 10.0)
        for each in setups(placements(2), (1, 4, 16), (1, 5))
    }


def exact(found: dict[Setup, Trial]) -> list[LoadPrediction]:
    return sorted(
        (LoadPrediction(each, trial.requests_per_second) for each, trial in found.items()), key=lambda p: -p.rate
    )


def test_halving_makes_as_many_trials_as_it_is_said_to() -> None:
    from marsmith.loadtest.tune.search import halve

    known = a_table()
    for count in range(1, 12):
        made = halve(list(known)[:count], lambda setup, *_: known[setup], p99_ms=50, rate=1, seconds=1)
        assert len(made) == trials_of(count)


def test_no_more_trials_are_made_than_allowed() -> None:
    for trials in range(1, 40):
        assert trials_of(count_for(trials)) <= trials


def test_the_best_prediction_is_chosen_where_predictions_are_right() -> None:
    known = a_table()
    chosen = our_choice(exact(known), lambda setup, *_: known[setup], 6, 50)
    assert regret(known, chosen, 50) == 0


def test_regret_is_what_is_lost_of_the_best_score() -> None:
    known = a_table()
    worst = min(known, key=lambda setup: known[setup].requests_per_second)
    assert regret(known, worst, 50) == pytest.approx(1 - 51 / 116)
    assert regret(known, None, 50) == 1


def test_as_many_random_trials_as_set_ups_find_the_best() -> None:
    known = a_table()
    chosen = random_choice(known, lambda setup, *_: known[setup], len(known), 50, seed=1)
    assert regret(known, chosen, 50) == 0


def test_the_same_seed_gives_the_same_noise() -> None:
    from tuner_replay import USUAL, noisy

    known = a_table()
    some = random.Random(0).sample(sorted(known), 5)
    one, two = noisy(known, 7), noisy(known, 7)
    assert [one(each, USUAL) for each in some] == [two(each, USUAL) for each in some]


def test_optuna_takes_part_with_the_same_trials() -> None:
    pytest.importorskip("optuna")
    from tuner_replay import regrets

    known = a_table()
    found = regrets(known, exact(known), 50, [4], seeds=2)
    assert {each.search for each in found} == {
        OUR_SEARCH,
        "random",
        "optuna TPE",
        "optuna TPE, 3 random first",
    }
    assert all(0 <= each.mean <= each.worst <= 1 for each in found)
    assert len(regret_table(found)) == 2 + len(found)


def test_a_comparison_reads_back_from_its_json(tmp_path: Path) -> None:
    from tuner_comparison import Comparison, Final, finals_table, from_json, sweep_table, to_json, verdict

    known = a_table()
    trials = tuple(known.values())
    chosen = exact(known)[0].setup
    made = Comparison(
        tuple(exact(known)),
        trials[:3],
        trials,
        (Final(chosen, 80.0, 40.0), Final(chosen, 100.0, 50.0)),
        chosen,
        50.0,
        {"sweep": 60.0},
    )
    file = tmp_path / "tuner.json"
    file.write_text(json.dumps(to_json(made)))
    assert from_json(json.loads(file.read_text())) == made
    assert made.ratio == 1
    assert sweep_table(made)[2].startswith(f"| **{chosen}** |")
    assert finals_table(made)[2] == f"| **{chosen}** | 100 | 40 | 50 |"
    assert "met" in verdict(made)


def test_the_rate_at_the_limit_lies_on_the_line_through_what_was_measured() -> None:
    from tuner_comparison import rate_at

    assert rate_at({80: 40.0, 100: 50.0}, 50.0) == pytest.approx(100)
    assert rate_at({80: 30.0, 100: 40.0, 120: 55.0}, 50.0) == pytest.approx(113, abs=2)
    # Noise alone would say that more requests are served faster.
    assert rate_at({80: 45.0, 100: 44.0}, 50.0) > 100


def test_what_is_neither_model_nor_frontend_is_told_as_idle() -> None:
    from stages import STAGES, tables

    figures = {"answers/s": 90.0, "mean": 11.0, **dict.fromkeys(STAGES, 1.0), "cores busy": 1.5, "in process": 120.0}
    _, table, said = tables({1: figures}, cores=2)
    assert table.splitlines()[2].startswith("| 1, 1 x 2 threads, batch 1, delay 1 ms | 90 | 11.0 | 1.0 |")
    assert said == (
        "- 1 client: 0.75 of what decode and model reach in process. Of 11.0 ms TorchServe's frontend and HTTP take"
        " 2.0, waiting in the queue 1.0; 0.50 of the 2 cores have nothing to do meanwhile.\n"
    )


# The page -------------------------------------------------------------------------------------------------------------


def stored_results() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((BENCHMARKS / "results").glob("*.json"))}


def test_the_page_shows_what_the_results_say(tmp_path: Path) -> None:
    from report import SECTIONS, render_page

    results = stored_results()
    assert set(results) == set(SECTIONS)
    page = (REPOSITORY / "docs" / "explanation" / "benchmarks.md").read_text(encoding="utf-8")
    assert render_page(results, tmp_path).rstrip() == page.partition("<!-- navigation")[0].rstrip()


# A cloud gives processors of several generations the same name.
@pytest.mark.parametrize("difference", [{"cores": 64}, {"cpuFlags": ["avx2"]}], ids=str)
def test_results_of_two_machines_make_no_page(difference: dict[str, object], tmp_path: Path) -> None:
    from report import render_page

    results = stored_results()
    results["ready"]["machine"] |= difference
    with pytest.raises(ValueError, match="different machines"):
        render_page(results, tmp_path)


def test_what_would_stand_beside_another_machines_results_is_not_even_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run_all

    shutil.copytree(run_all.RESULTS, tmp_path / "results")
    monkeypatch.setattr(run_all, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run_all, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(run_all, "machine_record", lambda: {"cpu": "Another CPU", "cores": 3, "cpuFlags": []})
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--only", "ready", "peers"])
    with pytest.raises(SystemExit) as refused:
        run_all.main()
    assert refused.value.code == 2
    told = capsys.readouterr().err
    assert "these results are of another machine: frontend, judged, optimize, service_level, serving" in told
    assert "make bench" in told
    assert not (tmp_path / "page.md").exists()


def test_what_could_not_be_measured_here_leaves_no_figures_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run_all

    shutil.copytree(run_all.RESULTS, tmp_path / "results")
    here = {**stored_results()["ready"]["machine"], "cpu": "Another CPU"}

    def measured(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        ready = stored_results()["ready"] | {"machine": here}
        if "ready.py" in command[1]:
            Path(command[-1]).write_text(json.dumps(ready))
        return subprocess.CompletedProcess(command, 0 if "ready.py" in command[1] else 1)

    monkeypatch.setattr(run_all, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run_all, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(run_all, "machine_record", lambda: here)
    monkeypatch.setattr(subprocess, "run", measured)
    monkeypatch.setattr(sys, "argv", ["run_all.py"])
    assert run_all.main() == 1
    page = (tmp_path / "page.md").read_text()
    assert "Another CPU" in page
    assert "Not measured on this machine yet: serving, judged" in page
    assert "## Start-up" in page
    assert "failed: serving, judged" in capsys.readouterr().err


# The GPU --------------------------------------------------------------------------------------------------------------


def test_a_form_that_a_machine_cannot_run_is_shown_with_the_reason() -> None:
    from gpu import Result, form_table, goals
    from gpu_models import FormTimes
    from gpu_serving import simulate

    forms = [FormTimes("eager", {1: 2.0, 8: 8.0}, 0.0), FormTimes("AOTInductor", {}, refused="no compiler")]
    times = {1: 4.0, 8: 16.0}
    result = Result("resnet50", 102.0, forms, times, simulate(times, rps=50, p99_ms=50), [], "no Java")
    lines = form_table(result)
    assert lines[2] == "| eager | 2.00 | 8.00 | 1000 | 0.0e+00 |"
    assert lines[3].startswith("| AOTInductor | refused: no compiler |")
    assert {line.count("|") for line in lines} == {6}
    assert goals(result, is_large=True)[0] == "not measured over HTTP: no Java"


def test_the_estimate_grows_with_the_time_of_a_batch() -> None:
    from gpu_serving import simulate

    quick, slow = (simulate({1: ms, 8: 2 * ms}, rps=50, p99_ms=50) for ms in (4.0, 12.0))
    assert quick.p99_ms < slow.p99_ms
    assert quick.largest_rps > slow.largest_rps > 0
