"""Replies of our classifier are compared on a real server behind the front: of shadows, and during canaries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch

from marsmith.cli import main
from marsmith.client import Client, tokens
from marsmith.deploy import Canary, Shadow, deploy
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.rollout.steps import Options
from marsmith.deploy.traffic.control import give_order
from marsmith.deploy.traffic.envoy import front_of
from marsmith.deploy.traffic.state import RolloutFile, RolloutState
from marsmith.errors import UsageError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle
from marsmith.server.lifecycle import StartOptions
from marsmith.server.supervisor import RestartPolicy, detach
from support.deploy_fixtures import write_version
from support.handler_fixtures import CLASSES, ChannelMeans
from support.live_server import make_project, until
from support.packed_classifiers import pack_classifier
from support.pictures import picture
from support.raw_calls import INFERENCE, call, message

pytestmark = pytest.mark.tensors

MODEL = "colours"
OPTIONS = Options(keep=0, limits=RolloutLimits(max_latency_ratio=1000))
PHOTOS = [picture(64, 48, seed) for seed in range(8)]


class Mistaken(ChannelMeans):
    """The colours again, with their names exchanged."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(images.to(torch.float32).mean(dim=(2, 3)) / 64.0, dim=1).roll(1, 1)


@dataclass
class Theatre:
    """A server with our classifier behind the front, and a supervisor."""

    project: Project
    state: RunState
    folder: Path

    def rollout(self) -> RolloutState:
        state = RolloutFile.of(self.project, MODEL).read()
        assert state
        return state

    def rest(self, number: int) -> int:
        return self._rest(PHOTOS[number % 8])

    def own_photo(self, number: int) -> int:
        """Send a photo that no other request has: of equal ones one reply counts."""
        return self._rest(picture(128 + number % 100, number // 100 % 100, number // 10_000))

    def _rest(self, photo: bytes) -> int:
        token = tokens.token(self.state, "inference")
        return call(self.state.inference, "POST", f"/predictions/{MODEL}", token, body=photo).status

    def grpc(self, number: int) -> bool:
        metadata = [("authorization", f"Bearer {tokens.token(self.state, 'inference')}")]
        entry = message({3: message({1: "body", 2: PHOTOS[number % 8]})})
        with grpc.insecure_channel(self.state.grpc_inference) as channel:
            answer: bytes = channel.unary_unary(f"/{INFERENCE}/Predictions")(
                message({1: MODEL}) + entry, metadata=metadata, timeout=60
            )
        return any(name.encode() in answer for name in CLASSES)

    def until_over(self, ask: Callable[[int], int]) -> RolloutState:
        """Ask without pause until the rollout has ended; every request must be answered."""
        with ThreadPoolExecutor(2) as pool:
            for number in range(0, 100_000, 20):
                assert set(pool.map(ask, range(number, number + 20))) == {200}
                if self.rollout().is_over:
                    return self.rollout()
        raise AssertionError("the rollout did not end")

    def versions(self) -> dict[str, bool]:
        with Client.for_project(self.project) as client:
            return {status.model_version: status.default for status in client.describe(MODEL)}


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    folder = tmp_path_factory.mktemp("shadow")
    archives = {f"{MODEL}-1.0.mar": pack_classifier(folder / "1.0", MODEL, "1.0", ChannelMeans())}
    foreign = write_version(folder, "1.0", model="foreign")
    project = make_project(folder / "project", {**archives, foreign.name: foreign}, load_models="all")
    project.settings_file.write_text("front: envoy\n")
    state = lifecycle.start(project, StartOptions(timeout_s=240))
    try:
        detach(project, RestartPolicy(), 240)
        yield Theatre(project, state, folder)
    finally:
        lifecycle.stop(project, timeout_s=0)


@pytest.fixture(autouse=True)
def here(theatre: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, str(theatre.project.root))


def test_replies_over_rest_and_grpc_are_joined_and_the_report_says_what_differs(
    theatre: Theatre, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack_classifier(theatre.folder / "2.0", MODEL, "2.0", Mistaken())
    outcome = deploy(theatre.project, str(archive), OPTIONS, strategy=Shadow(sample=100, time_s=3600))
    assert (outcome.result, outcome.before) == ("shadow", "1.0")
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(theatre.rest, range(100))) == {200}
        assert all(pool.map(theatre.grpc, range(100)))
    trial = lambda: theatre.rollout().trial  # noqa: E731
    until(lambda: (found := trial().report) is not None and found.pairs + trial().dropped >= 200, 60)
    capsys.readouterr()
    assert main(["rollout", MODEL]) == 0
    assert "copies" in (shown := capsys.readouterr().out)
    assert "NEW CLASS" in shown
    state = give_order(theatre.project, MODEL, "abort", print)
    found = state.trial.report
    assert found
    assert state.trial.copied + state.trial.dropped == 200
    assert found.pairs == state.trial.copied
    assert found.alone == (state.trial.dropped, 0)
    assert found.failed == (0, 0, 0)
    assert found.agreement.happened == 0
    page = Path(state.trial.page)
    assert "<h2>Flips by class</h2>" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["report"]["pairs"] == found.pairs
    assert theatre.versions() == {"1.0": True}
    assert front_of(theatre.project).copies_of(MODEL) is None


def test_a_version_of_other_classes_goes_back_by_disagreement_alone_and_one_of_the_same_weights_is_promoted(
    theatre: Theatre,
) -> None:
    canary = Canary(steps=(20, 50), interval_s=1, min_requests=10, compare=100)
    for version, module, phase in (("3.0", Mistaken(), "back"), ("4.0", ChannelMeans(), "promoted")):
        archive = pack_classifier(theatre.folder / version, MODEL, version, module)
        deploy(theatre.project, str(archive), OPTIONS, strategy=canary)
        rollout = theatre.until_over(theatre.own_photo)
        assert rollout.phase == phase, rollout.reason
        assert rollout.canary_tally.failed == rollout.stable_tally.failed == 0
        assert rollout.comparison.report
        assert rollout.comparison.report.agreement.happened == (
            0 if phase == "back" else rollout.comparison.report.pairs
        )
        assert front_of(theatre.project).share_of(MODEL) is None
        assert front_of(theatre.project).copies_of(MODEL, of_canary=True) is None
        if phase == "back":
            assert "replies of 3.0 are not those of 1.0: evidence" in rollout.reason
            assert "<h2>Flips by class</h2>" in Path(rollout.comparison.page).read_text()
    assert theatre.versions() == {"4.0": True}


def test_an_archive_that_cannot_be_compared_is_named_and_nothing_is_changed(theatre: Theatre) -> None:
    other = write_version(theatre.folder, "2.0", model="foreign")
    with pytest.raises(UsageError, match=r"no shadow of foreign: foreign:2\.0 cannot be compared: its handler is not"):
        deploy(theatre.project, str(other), OPTIONS, strategy=Shadow())
    assert not (theatre.project.root / "model_store" / other.name).exists()
    assert RolloutFile.of(theatre.project, "foreign").read() is None
