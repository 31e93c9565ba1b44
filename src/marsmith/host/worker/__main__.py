"""Run a worker on an inherited socket: ``python -P -m marsmith.host.worker DESCRIPTOR``."""

from __future__ import annotations

import sys

from marsmith.host.worker.serve import serve

if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))
