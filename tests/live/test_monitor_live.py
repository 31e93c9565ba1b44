"""Real Prometheus and Alertmanager beside a loaded server: no empty panel, and an alert that comes and goes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from marsmith.client import tokens
from marsmith.deploy import Canary, Shadow, deploy
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.rollout.steps import Options
from marsmith.deploy.traffic.control import give_order
from marsmith.deploy.traffic.state import RolloutFile
from marsmith.monitoring.folder import EDGES_S
from marsmith.monitoring.objectives import read_objectives
from marsmith.monitoring.rules import render_rules
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle, supervisor_state
from marsmith.server.lifecycle import StartOptions
from marsmith.server.supervisor import RestartPolicy, detach
from support.debian import needs
from support.handler_fixtures import ChannelMeans
from support.live_server import make_project, until
from support.long_tests import long
from support.packed_classifiers import pack_classifier
from support.pictures import picture
from support.prometheus import monitoring
from support.steady_load import SteadyLoad, steady_load

pytestmark = [pytest.mark.tensors, long(part="monitor"), needs("prometheus", "prometheus-alertmanager")]

MODEL = "colours"
SPEC = f"""\
name: {MODEL}
version: "1.0"
export: {{recipe: export/m.py}}
handler: {{entry_point: handlers/h.py}}
service_level: {{p99_ms: 1000, requests_per_second: 50}}
"""
FAULT = "a fault of the model"
BURN = ("MarsmithErrorBudgetBurn", "1h")
OPTIONS = Options(keep=0, limits=RolloutLimits(max_latency_ratio=1000))
PHOTOS = [picture(64, 48, seed) for seed in range(8)]


class Fragile(ChannelMeans):
    """The colours, but for white pictures."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool(images.to(torch.float32).mean() > 240):
            raise RuntimeError("a fault of the model")  # FAULT, which TorchScript does not know
        return torch.softmax(images.to(torch.float32).mean(dim=(2, 3)) / 64.0, dim=1)


@dataclass
class Watched:
    """A server behind the front, with a supervisor that listens.

    Attributes:
        bodies: what the load sends, one after the other.
    """

    project: Project
    state: RunState
    folder: Path
    bodies: list[bytes] = field(default_factory=lambda: list(PHOTOS))

    @contextmanager
    def load(self) -> Iterator[SteadyLoad]:
        token = tokens.token(self.state, "inference")
        load = SteadyLoad(self.state, MODEL, token, lambda marker: self.bodies[int(marker[1:]) % len(self.bodies)])
        with steady_load(load, closed=1, per_second=20, grpc=1):
            yield load


@pytest.fixture(scope="module")
def watched(light_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("monitor")
    archives = {f"{MODEL}-1.0.mar": pack_classifier(folder / "1.0", MODEL, "1.0", Fragile())}
    project = make_project(folder / "project", archives)
    project.settings_file.write_text("front: envoy\nlistener: 127.0.0.1:0\n")
    (project.specs / f"{MODEL}.yaml").write_text(SPEC)
    state = lifecycle.start(project, StartOptions(timeout_s=240))
    try:
        detach(project, RestartPolicy(), 240)
        until(lambda: (known := supervisor_state.read(project)) is not None and known.listener != "")
        yield Watched(project, state, folder)
    finally:
        lifecycle.stop(project, timeout_s=0)


@pytest.fixture(autouse=True)
def here(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, str(watched.project.root))


def test_no_panel_of_the_three_boards_is_empty_under_load_with_a_shadow_and_a_canary(watched: Watched) -> None:
    archive = pack_classifier(watched.folder / "2.0", MODEL, "2.0", Fragile())
    rollout = RolloutFile.of(watched.project, MODEL)
    with monitoring(watched.project) as here, watched.load() as load:
        until(lambda: load.count() > 200)
        deploy(watched.project, str(archive), OPTIONS, strategy=Shadow(sample=100, time_s=3600))
        until(lambda: here.empty({"server", "handlers", "front", "shadow"}) == [], 120)
        give_order(watched.project, MODEL, "abort", print)
        deploy(watched.project, str(archive), OPTIONS, strategy=Canary(steps=(50,), interval_s=600, sticky=None))
        until(lambda: (state := rollout.read()) is not None and state.canary_tally.answers > 20)
        until(lambda: here.empty({"server", "handlers", "front", "rollout"}) == [], 120)
        give_order(watched.project, MODEL, "abort", print)
    assert load.failed() == []


def test_an_alert_fires_when_half_the_replies_fail_and_resolves(watched: Watched) -> None:
    told: list[dict[str, Any]] = []
    with _receiver(told) as url:
        changed = {
            "rules/marsmith.rules.yml": _sixty_times_faster(watched.project),
            "alertmanager.yml": json.dumps(
                {
                    "route": {"receiver": "test", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"},
                    "receivers": [{"name": "test", "webhook_configs": [{"url": url, "send_resolved": True}]}],
                }
            ),
        }
        with monitoring(watched.project, changed) as here, watched.load() as load:
            until(lambda: load.count() > 100)
            assert BURN not in here.firing()
            white = picture(255, 255, 255)
            watched.bodies[:] = [PHOTOS[0], white]
            before = load.count()
            until(lambda: _told(told, "firing"), 120)
            assert BURN in here.firing()
            # Over gRPC the call itself succeeds.
            failed = [FAULT.encode() in sent.body for sent in load.sent[before:]]
            assert 0.4 < sum(failed) / len(failed) < 0.6
            watched.bodies[:] = PHOTOS
            until(lambda: _told(told, "resolved"), 240)
            assert BURN not in here.firing()


def _told(told: list[dict[str, Any]], status: str) -> bool:
    """Return whether somebody was told so of the fastest alert on the error budget of the model."""
    wanted = {"alertname": BURN[0], "window": BURN[1], "severity": "page", "model": MODEL}
    return any(alert["status"] == status and wanted.items() <= alert["labels"].items() for alert in told)


def _sixty_times_faster(project: Project) -> str:
    """Return the project's rules with a second in place of each minute of their windows."""
    text = render_rules(read_objectives(project).models, EDGES_S)
    seconds = {"m": 1, "h": 60, "d": 1440}
    return re.sub(r"\[(\d+)([mhd])\]", lambda each: f"[{int(each[1]) * seconds[each[2]]}s]", text)


@contextmanager
def _receiver(told: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the address of a receiver of alerts."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing: the tests' output is theirs."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
