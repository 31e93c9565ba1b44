"""Load tests: request arrivals, connections, a load driver, measurements and tuning.

Latency counts from the time when a request was *due*, not from the time when the driver sent it. A server that stalls
is thus charged for every request that was due meanwhile (no coordinated omission; Gil Tene, "How NOT to Measure
Latency").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.loadtest.bench import Load, run_load
    from marsmith.loadtest.measurement import Measurement

__all__ = ["Load", "Measurement", "run_load"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Load": "marsmith.loadtest.bench",
        "Measurement": "marsmith.loadtest.measurement",
        "run_load": "marsmith.loadtest.bench",
    },
)
