"""`make test-tools` installs the Debian packages that tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.debian import PACKAGES
from support.projects import REPOSITORY

SCRIPT = REPOSITORY / "tools" / "debian.sh"
NOBODY = 65_534

pytestmark = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="this is not Debian")


def test_the_list_has_every_package_that_a_test_runs() -> None:
    listed = {
        line for line in (REPOSITORY / "tests" / "debian.txt").read_text().splitlines() if line[:1] not in {"", "#"}
    }
    assert set(PACKAGES.values()) == listed


def test_without_a_missing_package_nobody_needs_root() -> None:
    done = as_nobody("# of Debian itself\ndpkg\nbash  # a shell\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_package_needs_root_and_is_named() -> None:
    done = as_nobody("dpkg\nmarsmith-has-no-such-package\n")
    assert done.returncode == 1
    assert "not installed: marsmith-has-no-such-package\nTIP: run it as root" in done.stderr


def as_nobody(packages: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a user who may install nothing."""
    user = NOBODY if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        # Those of pytest are for their owner only.
        Path(folder).chmod(0o755)
        (listed := Path(folder) / "list").write_text(packages)
        command = ["bash", "-c", SCRIPT.read_text(), "debian.sh", str(listed)]
        return subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False)
