"""The panels and alerts of drift and labels, with a real Prometheus that reads the exporter's own values of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marsmith.config.server_config import ListenAddress
from marsmith.monitoring.drift import DriftFile, DriftState
from marsmith.monitoring.drift.state import StatisticVerdict, WindowVerdict
from marsmith.monitoring.exporter.drift import DriftSource
from marsmith.monitoring.exporter.listener import Listener, Reply, Request
from marsmith.monitoring.exporter.samples import exposition
from marsmith.monitoring.targets import Target, Targets
from marsmith.predictions.labels import add_labels
from marsmith.predictions.log import Prediction
from marsmith.project import Project
from support.debian import needs
from support.live_server import until
from support.prometheus import monitoring

MODEL = "pets"


@contextmanager
def listening(project: Project) -> Iterator[Targets]:
    """Give what the exporter says of drift and labels to Prometheus."""
    source = DriftSource(project)

    async def answer(request: Request) -> Reply:
        return Reply(200, *exposition(source.collect(), request.accept))

    listener = Listener(ListenAddress("listener", "http", "127.0.0.1", 0), answer)
    try:
        yield Targets((Target("marsmith", listener.open()),))
    finally:
        listener.close()


@needs("prometheus", "prometheus-alertmanager")
def test_the_panels_of_drift_and_labels_have_data_and_drift_fires_its_alert(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "config" / "models").mkdir(parents=True)
    with listening(project) as targets, monitoring(project, targets=targets) as here:
        until(lambda: here.empty({"drift", "labels"}) != [])
        drifted = StatisticVerdict("brightness", 1000, 0.3, 1e-9, drifted=True)
        verdict = WindowVerdict(1.7e9, 1.7e9 + 60, 1000, 1e-6, (drifted,))
        DriftFile.of(project, MODEL).write({"1.0": DriftState(MODEL, "1.0", skew=verdict, windows=(verdict,))})
        prediction = Prediction(1.7e9, MODEL, "1.0", 200, "0" * 64, {"cat": 0.9, "dog": 0.1}, key="r1")
        add_labels(project, MODEL, [prediction], {"r1": "cat"})
        until(lambda: here.empty({"drift", "labels"}) == [])
        until(lambda: {("MarsmithDrift", ""), ("MarsmithSkew", "")} <= here.firing())
