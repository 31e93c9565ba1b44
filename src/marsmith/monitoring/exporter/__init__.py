"""The exporter: collects the values of the declared metrics, and answers /metrics, /ready and /live."""

from __future__ import annotations

from marsmith.monitoring.exporter.duty import Exporter
from marsmith.monitoring.exporter.samples import Sample, Source

__all__ = ["Exporter", "Sample", "Source"]
