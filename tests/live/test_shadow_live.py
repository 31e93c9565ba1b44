"""Replies of our classifier are compared on a real server behind the front: of shadows, and during canaries."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from marsmith.server import lifecycle, supervisor_state
from marsmith.server.lifecycle import StartOptions
from marsmith.server.supervisor import RestartPolicy, detach
from support.deploy_fixtures import write_version
from support.handler_fixtures import CLASSES, ChannelMeans
from support.live_server import make_project, until
from support.long_tests import long
from support.packed_classifiers import pack_classifier
from support.pictures import picture
from support.projects import REPOSITORY
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

    def compared(self) -> int:
        report = self.rollout().trial.report
        return report.agreement.happened if report else 0

    @contextmanager
    def hung(self, version: str) -> Iterator[None]:
        with Client.for_project(self.project) as client:
            workers = [worker.pid for worker in client.describe(MODEL, version)[0].workers]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

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


def test_a_version_of_other_classes_goes_back_by_disagreement_alone(theatre: Theatre) -> None:
    before = theatre.versions()
    archive = pack_classifier(theatre.folder / "3.0", MODEL, "3.0", Mistaken())
    deploy(theatre.project, str(archive), OPTIONS, strategy=Canary(steps=(20, 50), interval_s=600, compare=100))
    rollout = theatre.until_over(theatre.own_photo)
    assert rollout.phase == "back"
    assert "replies of 3.0 are not those of 1.0: evidence" in rollout.reason
    assert rollout.canary_tally.failed == rollout.stable_tally.failed == 0
    assert "<h2>Flips by class</h2>" in Path(rollout.comparison.page).read_text()
    assert theatre.versions() == before
    assert front_of(theatre.project).share_of(MODEL) is None
    assert front_of(theatre.project).copies_of(MODEL, of_canary=True) is None


REFUSES = (
    "if self.calls > 20: from marsmith_handler.errors import UnprocessableContent; raise UnprocessableContent('no')"
)


def test_a_version_that_refuses_what_the_old_one_answers_goes_back_over_rest_and_grpc(theatre: Theatre) -> None:
    before = theatre.versions()
    archive = pack_classifier(theatre.folder / "4.1", MODEL, "4.1", ChannelMeans(), at_infer=REFUSES)
    deploy(theatre.project, str(archive), OPTIONS, strategy=Canary(steps=(20,), interval_s=600, max_wait_s=3600))
    statuses: set[int] = set()
    answered = [False]

    def ask(number: int) -> int:
        statuses.add(theatre.rest(number))
        answered.append(theatre.grpc(number))
        return 200

    rollout = theatre.until_over(ask)
    assert rollout.phase == "back"
    assert "requests to 4.1 were refused with a status of 400 to 499, and 0 of" in rollout.reason
    # Refusals are not repeated: users see those until then.
    assert statuses == {200, 422}
    assert set(answered) == {True, False}
    assert rollout.canary_tally.failed == 0
    assert theatre.versions() == before


TRIAL = ["--shadow", "--sample", "100%", "--for", "4s", "--then", "canary", "--min-agreement", "0.5"]
QUICK = ["--steps", "50", "--interval", "1s", "--min-requests", "5", "--compare", "100%"]


def rolled_out(theatre: Theatre, archive: Path) -> RolloutState:
    assert main(["deploy", str(archive), *TRIAL, *QUICK, "--max-latency-ratio", "1000", "--keep", "0"]) == 0
    return theatre.until_over(theatre.own_photo)


def test_one_of_the_same_weights_is_promoted_by_a_shadow_and_a_canary_that_compare_it(theatre: Theatre) -> None:
    rollout = rolled_out(theatre, pack_classifier(theatre.folder / "4.0", MODEL, "4.0", ChannelMeans()))
    assert rollout.phase == "promoted", rollout.reason
    told = [moment.what for moment in rollout.timeline]
    assert any(what.startswith("the canary begins: agreement 100.00% of") for what in told)
    for report in (rollout.trial.report, rollout.comparison.report):
        assert report
        assert report.agreement.happened == report.pairs > 0
    assert theatre.versions() == {"4.0": True}


@long("servers")
def test_no_canary_follows_a_shadow_that_disagrees(theatre: Theatre) -> None:
    before = theatre.versions()
    rollout = rolled_out(theatre, pack_classifier(theatre.folder / "5.0", MODEL, "5.0", Mistaken()))
    assert (rollout.phase, rollout.step) == ("back", -1)
    assert rollout.reason.startswith("disagrees: agreement 0.00% of")
    assert theatre.versions() == before


def test_a_shadow_outlives_its_supervisor_and_costs_users_nothing_if_it_hangs(
    theatre: Theatre, capsys: pytest.CaptureFixture[str]
) -> None:
    before = theatre.versions()
    archive = pack_classifier(theatre.folder / "7.0", MODEL, "7.0", ChannelMeans())
    deploy(theatre.project, str(archive), OPTIONS, strategy=Shadow(sample=100, time_s=3600))
    assert {theatre.rest(number) for number in range(20)} == {200}
    known = supervisor_state.read(theatre.project)
    assert known
    os.kill(known.pid, signal.SIGKILL)
    until(lambda: supervisor_state.read(theatre.project) is None)
    try:
        capsys.readouterr()
        assert main(["status"]) == 0
        assert "7.0 gets copies of 100% of the requests" in (out := capsys.readouterr().out)
        assert "shadowing, unwatched" in out
        assert {theatre.rest(number) for number in range(20)} == {200}
    finally:
        detach(theatre.project, RestartPolicy(), 240)
    until(lambda: theatre.compared() + theatre.rollout().trial.dropped == 40, 60)
    dropped = theatre.rollout().trial.dropped
    with theatre.hung("7.0"):
        with ThreadPoolExecutor(2) as pool:
            assert set(pool.map(theatre.rest, range(100))) == {200}
            assert all(pool.map(theatre.grpc, range(50)))
        # Over each API 8 copies are under way, and over REST 8 more wait for their connections.
        until(lambda: theatre.rollout().trial.dropped >= dropped + 100, 40)
        trial = theatre.rollout().trial
    assert theatre.compared() == 40 - dropped
    assert 0 < trial.unanswered <= 40
    assert give_order(theatre.project, MODEL, "abort", print).phase == "back"
    assert theatre.versions() == before


def test_an_archive_that_cannot_be_compared_is_named_and_nothing_is_changed(theatre: Theatre) -> None:
    other = write_version(theatre.folder, "2.0", model="foreign")
    with pytest.raises(UsageError, match=r"no shadow of foreign: foreign:2\.0 cannot be compared: its handler is not"):
        deploy(theatre.project, str(other), OPTIONS, strategy=Shadow())
    assert not (theatre.project.root / "model_store" / other.name).exists()
    assert RolloutFile.of(theatre.project, "foreign").read() is None


@long("servers")
def test_an_archive_with_an_older_log_is_compared_once_its_handlers_are_renewed(
    theatre: Theatre, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = REPOSITORY / "tests" / "old_archives" / "doubling-0.1.mar"
    new = [theatre.folder / f"doubling-0.{number}.mar" for number in (2, 3)]
    with monkeypatch.context() as patch:
        patch.setenv(PROJECT_VARIABLE, str(REPOSITORY))
        for path in new:
            version = path.stem.removeprefix("doubling-")
            assert main(["repack", str(old), "--renew-handlers", "--version", version, "--output", str(path)]) == 0
    deploy(theatre.project, str(old), OPTIONS)
    capsys.readouterr()
    assert main(["deploy", str(new[1]), "--shadow"]) == 2
    error = capsys.readouterr().err
    assert "no shadow of doubling: doubling:0.1 cannot be compared: its handler has an older prediction log" in error
    assert "marsmith repack" in error
    deploy(theatre.project, str(new[0]), OPTIONS)
    deploy(theatre.project, str(new[1]), OPTIONS, strategy=Shadow(sample=100, time_s=3600))
    token = tokens.token(theatre.state, "inference")
    for number in range(20):
        headers = {"Content-Type": "application/json"}
        body = f"[{number}.5, 1]".encode()
        answer = call(theatre.state.inference, "POST", "/predictions/doubling", token, body=body, headers=headers)
        assert json.loads(answer.body) == [2 * number + 1, 2]

    def compared() -> int:
        state = RolloutFile.of(theatre.project, "doubling").read()
        return state.trial.report.agreement.happened if state and state.trial.report else 0

    until(lambda: compared() == 20, 60)
    assert give_order(theatre.project, "doubling", "abort", print).phase == "back"
