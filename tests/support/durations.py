"""Begin with the files that take longest, as `tests/durations.json` says.

A file goes to one process, and whoever begins with a long one when the others have nothing left to do works alone.

`make test OPTIONS=--store-durations` writes the file anew, in seconds of a clock. Those in it now are processor seconds
of all processes that a file started, read from a control group (cpuacct) of each of three pytest processes, on a busy
machine with two cores, where clocks measure the others too. Only their order counts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

DURATIONS = Path(__file__).parents[1] / "durations.json"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort, each file as a whole. A file that is not known yet comes first: it may take long."""
    known: dict[str, float] = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    items.sort(key=lambda item: -known.get(item.nodeid.partition("::")[0], float("inf")))


class Stopwatch:
    """Plugin that writes down the seconds of each file that ran; the others keep what was known."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's set-up, call or end."""
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file."""
        known = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
        there = {name: took for name, took in known.items() if (session.config.rootpath / name).exists()}
        rounded = {name: round(took, 1) for name, took in self.seconds.items()}
        told = dict(sorted((there | rounded).items()))
        DURATIONS.write_text(json.dumps(told, indent=0) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.addoption("--store-durations", action="store_true", help=f"write {DURATIONS.name}: seconds of each file")


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that hands out the tests hears of all."""
    if config.getoption("--store-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())
