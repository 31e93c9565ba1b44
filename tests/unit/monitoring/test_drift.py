"""Drift from a log: the baseline, windows, skew, the verb, its page, the supervisor's duty and its gauges."""

from __future__ import annotations

import json
import math
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marsmith.archive.manifest import Manifest
from marsmith.archive.members import Member
from marsmith.archive.reference import FILE_NAME, Reference, render_reference
from marsmith.archive.write import write_archive
from marsmith.cli import main
from marsmith.monitoring.drift import DriftFile, DriftMonitor, DriftState
from marsmith.monitoring.drift.baseline import MOST_KEPT
from marsmith.monitoring.drift.duty import DriftDuty
from marsmith.monitoring.exporter.drift import DriftSource
from marsmith.predictions.log import read_line
from marsmith.predictions.observations import Observation, observation_of
from marsmith.project import Project
from marsmith.statistics import DriftRule, sketch_of
from support.projects import copy_project

BEGIN, DAY = 1.7e9, 86_400.0
RULE = DriftRule(window=100, window_s=60)
SMALL = ("--window", "100", "--window-time", "1m", "--baseline", "2023-11-14..2023-11-16")


def _line(number: int, time_s: float, *, shift: float = 0.0, draw: random.Random, **other: Any) -> str:
    watched = {"brightness": draw.gauss(shift, 1), "class": "cat" if draw.random() < 0.7 - shift / 10 else "dog"}
    fields = {"schema": 3, "time": time_s, "key": f"r{number}", "model": "pets", "version": "1.0", "status": 200}
    fields |= {"input_sha256": f"{number:064}", "reply": None, "watched": [watched]}
    return json.dumps({**fields, **other}) + "\n"


def _lines(count: int, begin: float, *, shift: float = 0.0, step: float = 10.0, **other: Any) -> Iterator[str]:
    draw = random.Random(begin)
    for number in range(count):
        yield _line(round(begin) + number, begin + step * number, shift=shift, draw=draw, **other)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = copy_project(tmp_path / "project")
    project.prediction_logs.mkdir(parents=True)
    monkeypatch.chdir(project.root)
    return project


def _log(project: Project, *parts: Iterator[str]) -> Path:
    log = project.prediction_logs / "pets.jsonl"
    log.write_text("".join(line for part in parts for line in part), encoding="utf-8")
    return log


def test_what_is_no_number_is_not_observed_and_what_is_no_time_is_damaged(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = (_line(n, BEGIN, draw=random.Random(n), time=time) for n, time in enumerate((math.nan, math.inf, 1e300)))
    prediction = read_line(_line(0, BEGIN, draw=random.Random(0), watched=[{"a": math.nan, "b": 1.0}]).encode())
    assert observation_of(prediction).values == {"b": 1.0, "status": "200"}
    _log(project, odd, _lines(150, BEGIN))
    assert main(["drift", "pets", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["waiting"] == 150
    assert "3 damaged lines are left out" in shown.err


def _archive(project: Project, values: list[float]) -> None:
    reference = Reference(len(values), "0" * 64, {"brightness": sketch_of(values)})
    members = [
        Member("pets_handler.py", b"def handle(data, context):\n    return data\n"),
        Member(FILE_NAME, render_reference(reference).encode()),
    ]
    manifest = Manifest(model_name="pets", model_version="1.0", handler="pets_handler.py")
    write_archive(manifest, members, project.model_store / "pets-1.0.mar")


def _shown(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# Ten windows in the named period, and two after it.
def _baseline() -> Iterator[str]:
    return _lines(1_050, BEGIN)


def test_shifted_requests_drift_and_unshifted_ones_do_not(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    after = BEGIN + 3 * DAY
    _log(project, _baseline(), _lines(200, after))
    assert main(["drift", "pets", *SMALL, "--json"]) == 0
    quiet = _shown(capsys)
    assert (quiet["baseline"]["windows"], quiet["drift"]["drifted"], quiet["windows_judged"]) == (10, [], 2)
    _log(project, _baseline(), _lines(200, after, shift=1.5))
    assert main(["drift", "pets:1.0", *SMALL, "--json"]) == 0
    found = _shown(capsys)
    assert (found["drift"]["drifted"], found["windows_drifted"]) == (["brightness"], 2)
    statistic = next(one for one in found["drift"]["statistics"] if one["statistic"] == "brightness")
    assert statistic["distance"] > 0.4
    assert statistic["p_value"] < found["drift"]["level"]


def test_the_page_has_plots_and_loads_nothing(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    _log(project, _baseline(), _lines(300, BEGIN + 3 * DAY, shift=1.5))
    assert main(["drift", "pets", *SMALL, "--html", "drift.html"]) == 0
    table = capsys.readouterr().out
    assert "brightness differ from the baseline" in table
    assert [line.split()[-1] for line in table.splitlines() if line.startswith("brightness ")] == ["differs"]
    text = Path("drift.html").read_text(encoding="utf-8")
    charts = text.split("<svg")[1:]
    assert len(charts) == 4, "history, and each statistic"
    for chart in charts:
        ElementTree.fromstring("<svg" + chart.partition("</svg>")[0] + "</svg>")
    assert "Most changed: " in text
    assert "//" not in text.replace("http://www.w3.org/2000/svg", "")


def test_skew_is_told_once_against_the_reference_and_is_no_drift(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(7)
    _archive(project, [draw.gauss(1.5, 1) for _ in range(2_000)])
    _log(project, _baseline(), _lines(200, BEGIN + 3 * DAY))
    assert main(["drift", "pets", *SMALL, "--json"]) == 0
    found = _shown(capsys)
    assert (found["skew"]["drifted"], found["drift"]["drifted"]) == (["brightness"], [])
    assert found["skew"]["end"] < BEGIN + 1_100, "of the first window"
    _archive_alike = [draw.gauss(0, 1) for _ in range(2_000)]
    (project.model_store / "pets-1.0.mar").unlink()
    _archive(project, _archive_alike)
    assert main(["drift", "pets", *SMALL, "--json"]) == 0
    assert _shown(capsys)["skew"]["drifted"] == []


def test_without_a_reference_and_before_the_baseline_it_says_what_to_do(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    _log(project, _lines(150, BEGIN))
    assert main(["drift", "pets"]) == 0
    text = capsys.readouterr().out
    assert "no reference: give the spec validation data" in text
    assert "still collected: 0 of at least 10 windows" in text
    assert "150 of at least 1,000 observations" in text
    assert main(["drift", "pets", *SMALL]) == 0
    assert "the period has 1 windows, and needs 10" in capsys.readouterr().out


def test_shadows_other_models_and_other_versions_are_left_out(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    after = BEGIN + 3 * DAY
    others: list[dict[str, Any]] = [{"shadow": True}, {"model": "plants"}, {"version": "2.0"}]
    _log(project, _baseline(), *(_lines(200, after, shift=3, **other) for other in others), _lines(100, after + DAY))
    assert main(["drift", "pets", *SMALL, "--json"]) == 0
    found = _shown(capsys)
    assert (found["version"], found["windows_judged"], found["drift"]["drifted"]) == ("1.0", 1, [])


def test_an_older_log_has_no_figures_and_says_so(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    _log(project, _lines(20, BEGIN, watched=[]))
    assert main(["drift", "pets"]) == 0
    assert "build the archive again" in capsys.readouterr().err


def test_a_week_makes_the_baseline_of_which_a_bounded_sample_is_kept() -> None:
    monitor, draw = DriftMonitor(DriftState("pets", "1.0"), RULE), random.Random(1)
    for number in range(7_200):
        time_s = BEGIN + number * 100
        monitor.add(Observation(time_s, str(number), {"brightness": draw.gauss(0, 1)}))
        assert len(monitor.state.collected) <= MOST_KEPT
    baseline = monitor.state.baseline
    assert baseline is not None
    assert baseline.end - baseline.begin >= 7 * DAY
    assert baseline.windows > MOST_KEPT
    assert baseline.observations == 100 * MOST_KEPT
    assert monitor.state.collected == ()
    assert len(monitor.state.windows) >= 10
    assert not any(window.drifted for window in monitor.state.windows)


def test_the_supervisor_keeps_what_it_has_seen_and_another_goes_on(project: Project) -> None:
    told: list[str] = []
    log = _log(project, _baseline())
    assert main(["drift", "pets", *SMALL]) == 0
    with log.open("a", encoding="utf-8") as file:
        file.writelines(_lines(150, BEGIN + 3 * DAY))
    # The baseline of a named period is kept for the supervisor only if that is asked for.
    assert DriftFile.of(project, "pets").read() == ()
    assert main(["drift", "pets", *SMALL, "--save"]) == 0

    def duty() -> DriftDuty:
        return DriftDuty(project, lambda: ["pets"], told.append, look_s=0)

    first = duty()
    first.tick()
    with log.open("a", encoding="utf-8") as file:
        file.writelines(_lines(120, BEGIN + 4 * DAY))
    first.tick()
    assert told == []
    second = duty()
    with log.open("a", encoding="utf-8") as file:
        file.writelines(_lines(220, BEGIN + 5 * DAY, shift=1.5))
    second.tick()
    assert told == ["pets:1.0 drifts from its baseline: brightness; marsmith drift pets:1.0"], "once, not each window"
    (state,) = DriftFile.of(project, "pets").read()
    assert len(state.windows) >= 3

    samples = {(each.metric.name, each.labels[2:]): each.value for each in DriftSource(project).collect()}
    assert samples["marsmith_drift_detected", ("brightness", "baseline")] == 1
    assert samples["marsmith_drift_detected", ("status", "baseline")] == 0
    assert samples["marsmith_drift_distance", ("brightness", "baseline")] > 0.3
    assert samples["marsmith_drift_window_observations", ()] == 100


def test_the_file_of_drift_is_whole_or_says_what_is_wrong(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    _log(project, _lines(150, BEGIN))
    file = DriftFile.of(project, "pets")
    file.write({"1.0": DriftState("pets", "1.0", until=5.0)})
    assert file.read() == (DriftState("pets", "1.0", until=5.0),)
    file.path.write_text("{", encoding="utf-8")
    assert main(["drift", "pets"]) == 1
    assert f"rm {file.path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["plants"], "no prediction log of plants"),
        (["pets:3.0"], "no request of pets:3.0"),
        (["pets", "--baseline", "soon"], "'soon' is not a period"),
        (["pets", "--baseline", "2026-11-08..2026-11-01"], "is not a period"),
        (["pets", "--window", "3"], "--window must be at least 50"),
        (["pets", "--window-time", "1"], "'1' is not a duration"),
        (["pets", "--html", "missing/x.html"], "cannot write missing/x.html"),
        (["pets", "--save"], "no baseline to save"),
        (["../x"], "not a model name"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    project: Project, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    _log(project, _lines(20, BEGIN))
    assert main(["drift", *arguments]) == 2
    assert problem in capsys.readouterr().err.splitlines()[0]
