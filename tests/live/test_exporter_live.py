"""The supervisor's own listener on a real server behind the front: every declared metric, and probes that mean it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from marsmith.client import tokens
from marsmith.deploy.traffic.canary import Canary
from marsmith.deploy.traffic.shadow import Shadow, Trial
from marsmith.deploy.traffic.state import Level, RolloutFile, RolloutState
from marsmith.deploy.traffic.tally import Tally
from marsmith.metric_names import METRICS
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle, supervisor_state
from marsmith.server.lifecycle import StartOptions
from marsmith.server.supervisor import RestartPolicy, detach
from marsmith.statistics import Ledger
from support import live_server
from support.debian import needs
from support.handler_fixtures import ChannelMeans
from support.live_server import make_project
from support.packed_classifiers import pack_classifier
from support.pictures import picture
from support.prometheus import monitoring
from support.raw_calls import call

pytestmark = pytest.mark.tensors

MODEL = "colours"
PHOTO = picture(60, 40, 10)
VERSION = (("model", MODEL), ("version", "1.0"))
SPEC = f"""\
name: {MODEL}
version: "1.0"
export: {{recipe: export/m.py}}
handler: {{entry_point: handlers/h.py}}
service_level: {{p99_ms: 1000, requests_per_second: 50}}
"""
Labels = tuple[tuple[str, str], ...]
# A reading of all metrics costs milliseconds.
until = partial(live_server.until, pause_s=0.3)


@dataclass
class Watched:
    """A server with its listener."""

    project: Project
    state: RunState
    url: str

    def metrics(self) -> dict[tuple[str, Labels], float]:
        reply = requests.get(f"{self.url}/metrics", timeout=20)
        assert reply.status_code == 200
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
        }

    def value(self, name: str, *labels: tuple[str, str]) -> float:
        return self.metrics()[name, tuple(sorted((*VERSION, *labels)))]

    def probe(self, path: str) -> tuple[int, str]:
        reply = requests.get(self.url + path, timeout=20)
        return reply.status_code, reply.json().get("reason", "")

    def ask(self, body: bytes) -> int:
        token = tokens.token(self.state, "inference")
        return call(self.state.inference, "POST", f"/predictions/{MODEL}", token, body=body).status


@pytest.fixture(scope="module")
def watched(light_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    project = make_project(tmp_path_factory.mktemp("exporter") / "project")
    archive = pack_classifier(project.root / "work", MODEL, "1.0", ChannelMeans())
    archive.rename(project.model_store / f"{MODEL}-1.0.mar")
    (project.root / "config" / "marsmith.yaml").write_text("front: envoy\nlistener: 127.0.0.1:0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROJECT_VARIABLE, str(project.root))
        state = lifecycle.start(project, StartOptions(timeout_s=240))
        try:
            detach(project, RestartPolicy(), 240)
            yield Watched(project, state, _listener(project))
        finally:
            lifecycle.stop(project, timeout_s=0)


def _listener(project: Project) -> str:
    def url() -> str:
        known = supervisor_state.read(project)
        return known.listener if known else ""

    until(lambda: url() != "")
    return url()


def _rollout() -> RolloutState:
    """Return a rollout that has ended, with everything that one can have."""
    ledger = Ledger({"failed": 1.0, "slow": 1.0})
    ledger.event("failed", 0.5, is_canary=True)
    return RolloutState(
        MODEL,
        "0.9",
        "1.0",
        Canary(),
        Level(None, 10.0),
        began_s=1.0,
        phase="back",
        step=0,
        step_began_s=2.0,
        canary_tally=Tally(answers=3, failed=1),
        stable_tally=Tally(answers=4),
        ledger=ledger.record(),
        ended_s=3.0,
        shadow=Shadow(),
        trial=Trial(copied=5),
    )


def test_every_declared_metric_is_there_on_a_loaded_server(watched: Watched) -> None:
    until(lambda: watched.probe("/ready") == (200, ""))
    RolloutFile.of(watched.project, MODEL).write(_rollout())
    until(lambda: ("marsmith_front_replies_total", (("code_class", "2xx"), ("model", MODEL))) in watched.metrics())
    before = watched.metrics()
    assert [watched.ask(PHOTO) for _ in range(5)] == [200] * 5
    assert [watched.ask(b"not a photo") for _ in range(2)] == [415] * 2
    # Envoy and the supervisor look every few seconds.
    until(lambda: _grown(watched, before, "marsmith_front_request_duration_seconds_count", ("model", MODEL)) == 7)
    after = watched.metrics()
    assert _grown(watched, before, "marsmith_requests_total", *VERSION) == 7
    assert _grown(watched, before, "marsmith_batch_size_sum", *VERSION) == 5
    assert _grown(watched, before, "marsmith_request_errors_total", *VERSION, ("kind", "client")) == 2
    assert _grown(watched, before, "marsmith_request_errors_total", *VERSION, ("kind", "server")) == 0
    assert _grown(watched, before, "marsmith_front_replies_total", ("model", MODEL), ("code_class", "2xx")) == 5
    names = {name for name, _ in after}
    expected = [each for each in METRICS if each.needs not in {"drift", "labels"}]
    ends = {"histogram": ("_bucket", "_sum", "_count")}
    missing = [
        each.name + end for each in expected for end in ends.get(each.kind, ("",)) if each.name + end not in names
    ]
    assert missing == []


def _grown(watched: Watched, before: dict[tuple[str, Labels], float], name: str, *labels: tuple[str, str]) -> float:
    key = (name, tuple(sorted(labels)))
    return watched.metrics().get(key, 0.0) - before.get(key, 0.0)


@needs("prometheus", "prometheus-alertmanager")
def test_a_real_prometheus_has_data_for_every_panel_that_needs_no_rollout(watched: Watched) -> None:
    """`make test-long PART=monitor` asks for the panels of rollouts too."""
    spec = watched.project.specs / f"{MODEL}.yaml"
    spec.write_text(SPEC)
    try:
        with monitoring(watched.project) as here:
            until(lambda: watched.ask(PHOTO) == 200 and here.empty({"server", "handlers", "front"}) == [])
            # A panel without data would be found.
            assert here.empty({"labels"})
    finally:
        spec.unlink()


def test_a_torchserve_that_hangs_neither_hangs_nor_empties_the_listener(watched: Watched) -> None:
    until(lambda: watched.probe("/ready") == (200, ""))
    with _hanging(watched.state.pid):
        until(lambda: watched.metrics()["marsmith_up", ()] == 0)
        began = time.monotonic()
        assert watched.value("marsmith_requests_total") >= 0
        assert time.monotonic() - began < 10, "less than a scrape may take, however long TorchServe does"
        assert watched.probe("/ready") == (503, "TorchServe does not answer")
        assert watched.probe("/live")[0] == 200
    until(lambda: watched.probe("/ready")[0] == 200)


def test_a_torchserve_that_dies_is_not_ready_until_it_is_back(watched: Watched) -> None:
    until(lambda: watched.probe("/ready")[0] == 200)
    os.kill(watched.state.pid, signal.SIGKILL)
    until(lambda: watched.probe("/ready")[0] == 503)
    assert watched.metrics()["marsmith_up", ()] == 0
    assert watched.value("marsmith_queue_capacity") > 0, "the last value"
    before = watched.metrics()
    until(lambda: watched.probe("/ready")[0] == 200)
    assert watched.metrics()["marsmith_server_restarts_total", ()] == 1
    assert watched.ask(PHOTO) == 200
    until(lambda: _grown(watched, before, "marsmith_requests_total", *VERSION) == 1)


def test_probes_see_a_stop_before_any_request_is_refused(watched: Watched) -> None:
    until(lambda: watched.probe("/ready")[0] == 200)
    command = [sys.executable, "-m", "marsmith", "stop", "--delay", "5"]
    with subprocess.Popen(command, env={**os.environ, PROJECT_VARIABLE: str(watched.project.root)}) as stop:
        until(lambda: watched.probe("/ready") == (503, "the server is being stopped"))
        assert watched.ask(PHOTO) == 200
        assert stop.wait(60) == 0
    with pytest.raises(requests.ConnectionError):
        watched.probe("/live")


@contextmanager
def _hanging(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
