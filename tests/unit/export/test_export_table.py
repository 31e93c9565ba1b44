"""What is shown of a lock: where it was measured, and what this machine cannot have of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marsmith.cli.export_table import print_lock
from marsmith.cli.inspect import _here
from marsmith.config.form import Form
from marsmith.export.lock import ExportLock, parse_export_lock, render_export_lock
from marsmith.export.machine import Machine, limits_here, machine_text
from marsmith.export.measure import Progress, _Trial
from marsmith.export.messages import JobRequest
from marsmith.export.page import render_page
from support.projects import REPOSITORY

LOCK_FILE = REPOSITORY / "config" / "models" / "efficientnet_lite0.lock"
EPYC = Machine("AMD EPYC", "x86_64", 2, frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}), (), "3.11.7")
# Of the same name, and several times slower.
OLDER = replace(EPYC, cpu_flags=frozenset({"avx2"}))
WITH = "AMD EPYC, 2 cores (avx2, avx512_bf16, avx512_vnni, avx512f)"


@pytest.fixture
def lock() -> ExportLock:
    return parse_export_lock(LOCK_FILE.read_text(), "lock")


def shown(lock: ExportLock, capsys: pytest.CaptureFixture[str], source: str = "from the lock, measured") -> str:
    print_lock(lock, source)
    return capsys.readouterr().out


def row(text: str, form: str) -> str:
    return next(line for line in text.splitlines() if form in line.split())


def test_two_processors_of_one_name_are_told_apart(
    lock: ExportLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Machine, "here", lambda: OLDER)
    text = shown(lock, capsys)
    assert f"from the lock, measured on {WITH}" in text
    assert "this machine: AMD EPYC, 2 cores (avx2)" in text
    assert "not possible here" in row(text, "torchscript/bfloat16/torch")
    assert "torchscript/bfloat16/torch: not possible here: this processor (AMD EPYC) computes bfloat16 only by" in text
    assert "computes in float32 here" in row(text, "torchscript/bfloat16/openvino")
    assert "passed" in row(text, "torchscript/float32/openvino")
    assert "failed" not in text


def test_on_its_own_machine_a_lock_is_shown_as_it_is(
    lock: ExportLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Machine, "here", lambda: EPYC)
    text = shown(lock, capsys, "measured now")
    assert f"measured now on {WITH}" in text
    assert "here" not in text
    assert "this machine" not in text


def test_a_lock_that_says_no_features_is_read_and_not_taken_for_one_of_here(
    lock: ExportLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Machine, "here", lambda: EPYC)
    machine = {key: value for key, value in lock.machine.items() if key != "features"}
    old = parse_export_lock(render_export_lock(lock.model_copy(update={"machine": machine})), "old.lock")
    text = shown(old, capsys)
    assert "measured on AMD EPYC, 2 cores (features not recorded)" in text
    assert f"this machine: {WITH}" in text


def test_a_form_that_the_measuring_machine_could_not_have_has_not_failed(
    lock: ExportLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    template = JobRequest({}, "", "random", {}, str(tmp_path), str(tmp_path))
    steps: list[str] = []

    with _Trial(template, tmp_path, "cpu", OLDER, Progress(step=steps.append)) as trial:
        trial.add(Form.parse("torchscript/bfloat16/torch"))
    (found,) = trial.found.values()
    assert found.verdict == "not possible"
    assert steps[0].startswith("torchscript/bfloat16/torch is not possible: this processor (AMD EPYC)")
    measured = lock.model_copy(update={"candidates": [*lock.candidates[:1], found], "machine": OLDER.record()})
    kept = parse_export_lock(render_export_lock(measured), "lock")
    monkeypatch.setattr(Machine, "here", lambda: OLDER)
    assert "not possible here" in row(shown(kept, capsys, "measured now"), found.form)
    monkeypatch.setattr(Machine, "here", lambda: EPYC)
    assert "not possible there" in row(shown(kept, capsys), found.form)


def test_pt2_is_not_possible_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = limits_here(Form.parse("pt2/float32/aot_inductor"), "cpu", EPYC) or ""
    assert said.startswith("not possible here: no compiler for pt2: no-such-compiler is not on the PATH")


def test_the_page_says_where_it_was_measured(lock: ExportLock) -> None:
    pytest.importorskip("matplotlib")
    assert f"Measured on {WITH}." in render_page(lock, {"weights": {"source": "recipe"}})


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (EPYC.record(), WITH),
        ({"cpu": "X", "cores": 4}, "X, 4 cores (features not recorded)"),
        ({"cpu": "X", "cores": 4, "features": []}, "X, 4 cores (no relevant feature)"),
        ({**EPYC.record(), "gpus": ["H100"]}, f"{WITH}, H100"),
        ({}, "an unknown processor, ? cores (features not recorded)"),
    ],
)
def test_a_machine_is_named_by_what_decides_its_speed(record: Mapping[str, Any], text: str) -> None:
    assert machine_text(record) == text


def test_inspect_says_where_the_speed_was_measured_and_what_the_form_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    export = {"form": "torchscript/bfloat16/torch", "device": "cpu", "speed": {"machine": EPYC.record()}}
    monkeypatch.setattr(Machine, "here", lambda: OLDER)
    found = _here(export)
    assert found["speed measured on"] == WITH
    assert found["this machine"] == "AMD EPYC, 2 cores (avx2)"
    assert found["form here"].startswith("not possible here: ")
    monkeypatch.setattr(Machine, "here", lambda: EPYC)
    assert _here(export) == {"speed measured on": WITH}
    for damaged in (None, {}, {"form": 3, "speed": []}, {"form": "a/b/c", "speed": {"machine": 1}}):
        assert _here(damaged) == {}
    assert json.loads(json.dumps(found)) == found
