"""Begin with the files that take longest, as `tests/durations.json` says.

A file goes to one process, and whoever begins with a long one when the others have nothing left to do works alone.

`make test OPTIONS=--store-durations` writes the file anew. As root on a system with the control group `cpuacct`, it
writes processor seconds of all processes that a file started, those that outlive a test too; only these mean something
on a busy machine. Otherwise it writes seconds of a clock.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

DURATIONS = Path(__file__).parents[1] / "durations.json"
GROUPS = Path("/sys/fs/cgroup/cpuacct")
PROPERTY = "processor_s"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort, each file as a whole. A file that is not known yet comes first: it may take long."""
    known: dict[str, float] = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    items.sort(key=lambda item: -known.get(item.nodeid.partition("::")[0], float("inf")))


class Meter:
    """Plugin of a process that runs tests: measures the processor time of its own control group.

    Raises:
        OSError: there is none, or this user cannot make it.
    """

    def __init__(self) -> None:
        self.group = GROUPS / f"marsmith-tests-{os.getpid()}"
        self.group.mkdir()
        (self.group / "cgroup.procs").write_text(str(os.getpid()))
        self.last_s = self.used_s()

    def used_s(self) -> float:
        """Return the processor seconds since the group was made."""
        return int((self.group / "cpuacct.usage").read_text()) / 1e9

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write into the report what was used since the one before."""
        report = yield
        now_s = self.used_s()
        report.user_properties.append((PROPERTY, now_s - self.last_s))
        self.last_s = now_s
        return report

    def pytest_sessionfinish(self) -> None:
        """Leave the group, and remove it unless a process lives on in it."""
        (GROUPS / "cgroup.procs").write_text(str(os.getpid()))
        with suppress(OSError):
            self.group.rmdir()


class Stopwatch:
    """Plugin that writes down the seconds of each file that ran; the others keep what was known."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's set-up, call or end."""
        measured: dict[str, Any] = dict(report.user_properties)
        self.seconds[report.nodeid.partition("::")[0]] += measured.get(PROPERTY, report.duration)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file."""
        known = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
        there = {name: took for name, took in known.items() if (session.config.rootpath / name).exists()}
        rounded = {name: round(took, 1) for name, took in self.seconds.items()}
        DURATIONS.write_text(json.dumps(dict(sorted((there | rounded).items())), indent=0) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.addoption("--store-durations", action="store_true", help=f"write {DURATIONS.name}: seconds of each file")


def pytest_configure(config: pytest.Config) -> None:
    """Measure in the processes that run tests; the one that hands them out writes the file."""
    if not config.getoption("--store-durations"):
        return
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        with suppress(OSError):
            config.pluginmanager.register(Meter())
