"""Freed memory that stays with the process, seen in the page faults of the next allocation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.projects import REPOSITORY

HANDLERS = REPOSITORY / "handlers"
SCRIPT = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from marsmith_handler.freed_memory import keep_freed_memory
kept = keep_freed_memory()
for run in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(30_000_000)
    del block
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults)
"""


def faults_of_an_allocation(**environment: str) -> tuple[bool, int]:
    """Allocate and free the same 30 MB four times in a process; count the page faults of the fourth."""
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(HANDLERS)], env=environment, capture_output=True, check=True
    )
    kept, faults = out.stdout.split()
    return kept == b"True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    kept, faults = faults_of_an_allocation()
    assert kept
    assert faults < 100


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_settings_of_the_environment_are_left_alone() -> None:
    kept, faults = faults_of_an_allocation(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
    assert faults > 1000
