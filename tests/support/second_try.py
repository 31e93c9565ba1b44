"""`pytest --second-try`: a test that fails runs once more when all others have ended, with nothing beside it.

If it then passes, the run counts as passed, and its summary names the test as FLAKY with the traceback. A flaky test is
a defect of its own, but not one of the change that is tested. A test that fails twice fails the run and shows both
tracebacks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

# More failures are not chance, and would take long to run again.
MOST_TRIES = 100


class Failures:
    """Plugin of the second try: writes down what fails in it."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.tracebacks: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a failure, of the test or of its fixtures."""
        if report.failed:
            self.tracebacks[report.nodeid] = f"{self.tracebacks.get(report.nodeid, '')}{report.longreprtext}\n"

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the file, unless the tests could not be run."""
        if self.file and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            self.file.write_text(json.dumps(self.tracebacks), encoding="utf-8")


class SecondTry(Failures):
    """Plugin of the first try: runs again what failed in it."""

    def __init__(self) -> None:
        super().__init__()
        self.again: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Run again what failed, a file in one process, and let the run pass if all of it passes now."""
        if exitstatus != pytest.ExitCode.TESTS_FAILED or not 0 < len(self.tracebacks) <= MOST_TRIES:
            return
        by_file = defaultdict(list)
        for test in self.tracebacks:
            by_file[test.partition("::")[0]].append(test)
        for tests in by_file.values():
            self.again |= _run_again(session.config, tests)
        if not self.again:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show what both tries of a test gave, and last the names."""
        if self.tracebacks and len(self.tracebacks) <= MOST_TRIES:
            results = {test: self.again.get(test, "passed") for test in self.tracebacks}
            for test, second in results.items():
                terminalreporter.section(f"{_verdict(second)}: {test}")
                terminalreporter.line(f"first try:\n{self.tracebacks[test]}\nsecond try, alone:\n{second}")
            for test, second in results.items():
                terminalreporter.line(f"{_verdict(second)}: {test}")


def _verdict(second: str) -> str:
    return "FLAKY" if second == "passed" else "FAILED TWICE"


def _run_again(config: pytest.Config, tests: list[str]) -> dict[str, str]:
    """Return the tests that fail again, with their tracebacks."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "failures.json"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--failures-to={report}", *tests],
            cwd=config.rootpath,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            return dict.fromkeys(tests, f"{done.stdout}{done.stderr}")
        failed: dict[str, str] = json.loads(report.read_text(encoding="utf-8"))
        return failed


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    parser.addoption("--second-try", action="store_true", help="run what failed once more, alone, at the end")
    parser.addoption("--failures-to", type=Path, metavar="FILE", help="write what fails to FILE, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that hands out the tests runs them again."""
    if hasattr(config, "workerinput"):
        return
    if config.getoption("--second-try"):
        config.pluginmanager.register(SecondTry())
    if config.getoption("--failures-to"):
        config.pluginmanager.register(Failures(config.getoption("--failures-to")))
