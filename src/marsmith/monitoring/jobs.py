"""Names of the jobs in Prometheus: which listener a series comes from."""

from __future__ import annotations

# Of the supervisor: everything that alerts and dashboards ask for.
SUPERVISOR = "marsmith"
# TorchServe's own metrics, and Envoy's, beside them.
SERVER = "torchserve"
FRONT = "envoy"
JOBS = (SUPERVISOR, SERVER, FRONT)
