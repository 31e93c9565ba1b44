"""Load on a server, and what came of it: arrivals, lanes that carry requests, a driver, and the measurement.

Latency counts from the moment at which a request was *due*, not from when the driver came round to sending it, so that
a server that stalls is charged for every request that would have come meanwhile (no coordinated omission; Gil Tene,
"How NOT to Measure Latency").
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
