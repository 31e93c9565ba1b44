"""Duties beside the watch of a server: none of them can stop the watch or another duty."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marsmith.errors import ServerError
from marsmith.run_state import RunState
from marsmith.server import duty, lifecycle
from marsmith.server.duty import DutyThread, performing
from marsmith.server.supervisor import RestartPolicy, Supervisor
from marsmith.server.systemd import ServiceManager
from support.live_server import make_project, until


@dataclass
class Counting:
    work: Callable[[], None] = lambda: None
    name: str = "count"
    ticks: int = 0
    closed: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def tick(self) -> None:
        self.ticks += 1
        self.work()

    def close(self) -> None:
        self.closed = True


def wait_for(event: threading.Event) -> None:
    event.wait()


def boom() -> None:
    raise ServerError("the disk is full")


def odd() -> None:
    raise ZeroDivisionError("by zero")


def test_a_duty_that_raises_is_reported_once_and_goes_on_and_the_others_do_not_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duty, "LONGEST_PAUSE_S", 0.01)
    told: list[str] = []
    good, bad, worse = Counting(), Counting(boom, "bad"), Counting(odd, "worse")
    with performing([bad, good, worse], told.append):
        until(lambda: min(good.ticks, bad.ticks, worse.ticks) >= 3, 30)
    assert sorted(told) == ["bad: the disk is full", "worse: ZeroDivisionError('by zero')"]
    assert good.closed
    assert bad.closed
    assert worse.closed


def test_a_duty_that_hangs_is_reported_and_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duty, "OVERDUE_S", 0.0)
    monkeypatch.setattr(duty, "_LAST_TICK_S", 0.05)
    release, told = threading.Event(), list[str]()
    hanging, good = Counting(lambda: wait_for(release), "hung"), Counting()
    with performing([hanging, good], told.append) as threads:
        until(lambda: hanging.ticks == 1 and good.ticks > 3, 30)
        for _ in range(3):
            threads[0].report_overdue()
    release.set()
    assert told == ["hung: no progress for 0 s; the server is still watched"]
    assert good.closed


def test_a_duty_is_called_many_times_a_second() -> None:
    counting = Counting()
    thread = DutyThread(counting, print)
    thread.start()
    began = time.monotonic()
    until(lambda: counting.ticks >= 5, 30)
    thread.end()
    # Four pauses of 0.05 s at least; how much longer it takes depends on the machine.
    assert time.monotonic() - began >= 4 * duty.PAUSE_S


def test_a_supervisor_performs_its_duties_while_it_watches_and_closes_them_when_the_server_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "p")
    project.run.mkdir(parents=True)
    hanging = threading.Event()
    duties = [Counting(boom), Counting(lambda: wait_for(hanging)), Counting()]
    monkeypatch.setattr(duty, "_LAST_TICK_S", 0.05)
    # The server counts as running until the good duty has been called a few times, and then as stopped on purpose.
    monkeypatch.setattr(lifecycle, "is_alive", lambda state: duties[2].ticks < 5)
    supervisor = Supervisor(
        project, RestartPolicy(0), lifecycle.StartOptions(), ServiceManager(), lambda text: None, duties
    )
    supervisor.run(RunState(1, 2.0, "", "", "", "", "", project.run, tokens=False))
    hanging.set()
    assert all(each.closed for each in duties)
