"""The wheel of this checkout, installed into a virtual environment of its own, on top of what is installed here."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from support.projects import REPOSITORY


def installed_wheel(folder: Path) -> Path:
    """Build the wheel and install it without its dependencies; return the Python that has it.

    The packages that it needs are those of the Python that runs the tests: found after the environment's own, and
    without their .pth files, so that marsmith itself comes from the wheel.
    """
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), cwd=REPOSITORY)
    (wheel,) = folder.glob("marsmith-*.whl")
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    run(sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", str(python), str(wheel))
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, and return what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done
