"""The loop that `export` and `optimize` share: forms are made and judged, and those that pass are timed by turns."""

from __future__ import annotations

from functools import partial

import pytest

from marsmith.config.form import BASE, Form
from marsmith.export.lock import Candidate
from marsmith.export.machine import Machine
from marsmith.export.measure import Effort, Progress, Trial, compete, failed

FAST, REFUSED, BROKEN = (Form("torchscript", precision, "torch") for precision in ("bfloat16", "float16", "int8"))


class Numbers(Trial):
    """Forms whose speed is known beforehand."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__("cpu", Machine.here(), Progress(step=steps.append))
        self.turns: list[tuple[str, int, float]] = []
        self.eager = partial(self._rate, "eager", 10.0)

    def _rate(self, name: str, reached: float, size: int, seconds: float) -> float:
        self.turns.append((name, size, seconds))
        # A slow moment of the machine, which hits one turn of one contestant.
        return reached / 100 if len(self.turns) == 9 else reached * size

    def _made(self, form: Form) -> Candidate:
        if form == BROKEN:
            return failed(form, f"{form} cannot be made", "take another")
        if form != REFUSED:
            self.rates[form] = partial(self._rate, str(form), 20.0 if form == BASE else 40.0)
        return Candidate(form=str(form), verdict="refused" if form == REFUSED else "passed", reason="too far off")


def test_those_that_pass_are_timed_by_turns_against_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marsmith.export.measure.obstacle", lambda *_: None)
    steps: list[str] = []
    effort = Effort(rounds=3, turn_s=0.5)
    with Numbers(steps) as trial:
        found = compete(trial, [BASE, FAST, REFUSED, BROKEN], 4, effort, Progress())
    assert found.sizes == [1, 4]
    assert found.eager == {"1": 10.0, "4": 40.0, "8": 80.0}
    assert [one.verdict for one in found.candidates] == ["passed", "passed", "refused", "failed"]
    assert [one.speedup for one in found.candidates] == [2.0, 4.0, None, None]
    assert found.candidates[3].reason == "cannot be made (take another)"
    assert steps == [f"{REFUSED} is refused: too far off", f"{BROKEN} is failed: cannot be made (take another)"]
    sizes = 3
    warm_up, first = trial.turns[: 3 * sizes], trial.turns[3 * sizes : 6 * sizes]
    assert {seconds for *_, seconds in warm_up} == {0.0}
    assert {seconds for *_, seconds in first} == {0.5}
    assert [name for name, *_ in first[::sizes]] == [str(BASE), str(FAST), "eager"]
    assert len(trial.turns) == 4 * 3 * sizes


def test_the_next_search_for_int8_aims_higher_and_never_above_all() -> None:
    pytest.importorskip("torch")
    from marsmith.export.int8.quantize import aim

    aims = [aim(0.98, attempt) for attempt in range(2)]
    assert aims == pytest.approx([0.985, 0.995])
