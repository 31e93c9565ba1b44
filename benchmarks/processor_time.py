"""What a request takes of the processor: the frontend's share, the workers', and the driver's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

Made = TypeVar("Made")


def processor_seconds() -> dict[str, float]:
    """Return what the JVM of a server, its workers and this process have used so far, in seconds."""
    used = {"workers": 0.0, "frontend": 0.0, "driver": time.process_time()}
    for process in psutil.Process().children(recursive=True):
        with process.oneshot():
            times = process.cpu_times()
            part = "frontend" if process.name() == "java" else "workers"
            used[part] += times.user + times.system
    return used


def with_processor_time(load: Callable[[], Made]) -> tuple[Made, dict[str, float]]:
    """Apply a load; return what it gives, and what each part used meanwhile, in seconds."""
    before = processor_seconds()
    made = load()
    after = processor_seconds()
    return made, {part: after[part] - before[part] for part in before}
