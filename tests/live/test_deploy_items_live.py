"""Deploys of our own image classifier that fails its users item by item: no worker dies, and gRPC says OK to all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from marsmith.archive import Manifest, Member, write_archive
from marsmith.client import tokens
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.versions import Event, Options, Outcome, deploy
from marsmith.errors import ServerError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.runtime.imports import local_imports
from support.handler_fixtures import CLASSES, ChannelMeans, write_model
from support.live_server import make_project, running
from support.long_tests import long
from support.pictures import picture
from support.projects import REPOSITORY
from support.steady_load import SteadyLoad, steady_load

MODEL = "colours"
ENTRY = REPOSITORY / "handlers" / "image_classifier_handler.py"
# Latency is not judged: other tests may keep the machine busy.
WATCHED = Options(keep=0, watch_s=1.0, limits=RolloutLimits(max_latency_ratio=1e6))
LONG = Options(keep=0, watch_s=120.0, limits=WATCHED.limits)


class GreyOnly(torch.nn.Module):
    """Answers the grey image that it is warmed up with, and fails on every other."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool((images != 127).any()):
            raise RuntimeError("not what it was trained for")
        return torch.softmax(images.to(torch.float32).mean(dim=(2, 3)) / 64.0, dim=1)


@dataclass
class Arena:
    """A running server whose default version answers."""

    project: Project
    state: RunState
    folder: Path
    _count: int = 1

    def build(self, module: torch.nn.Module | None = None, *, counts: bool = True, **settings: object) -> Path:
        self._count += 1
        return write_version(self.folder, f"{self._count}.0", module, counts=counts, **settings)

    def load(self, bad_every: int = 0) -> SteadyLoad:
        """Return a load of pictures, one in ``bad_every`` of which is none."""

        def body(marker: str) -> bytes:
            number = int(marker[1:])
            return b"no picture" if bad_every and number % bad_every == 0 else picture(250, 0, number % 250)

        return SteadyLoad(self.state, MODEL, tokens.token(self.state, "inference"), body)


def write_version(
    folder: Path, version: str, module: torch.nn.Module | None = None, *, counts: bool = True, **settings: object
) -> Path:
    """Write an archive around the handler that we ship; without ``counts`` as it was before it counted failures."""
    scratch = folder / version
    write_model(scratch, module or ChannelMeans())
    handler = {"resize": 16, "crop": [16, 16], "warm_up_s": 1, **settings}
    serving = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "maxBatchDelay": 1}
    serving |= {"responseTimeout": 60, "startupTimeout": 240, "maxRetryTimeoutInSec": 10}
    files = (ENTRY, *local_imports(ENTRY))
    sources = {path.relative_to(ENTRY.parent).as_posix(): path.read_bytes() for path in files}
    if not counts:
        metrics = sources["marsmith_handler/metrics.py"]
        assert b", ITEM_FAILURES)" in metrics
        sources["marsmith_handler/metrics.py"] = metrics.replace(b", ITEM_FAILURES)", b")")
    members = [
        Member("model.pt", scratch / "model.pt"),
        Member("index_to_name.json", json.dumps(dict(enumerate(CLASSES))).encode()),
        Member("model-config.yaml", json.dumps({**serving, "handler": handler}).encode()),
        *(Member(name, content) for name, content in sources.items()),
    ]
    manifest = Manifest(
        MODEL,
        version,
        ENTRY.name,
        serialized_file="model.pt",
        config_file="model-config.yaml",
        marsmith={"formatVersion": 1},
    )
    target = folder / f"{MODEL}-{version}.mar"
    write_archive(manifest, members, target)
    shutil.rmtree(scratch)
    return target


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("items")
    first = write_version(folder, "1.0")
    project = make_project(folder / "project", {first.name: first}, load_models=first.name)
    with running(project) as state:
        yield Arena(project, state, folder)


def watched(arena: Arena, archive: Path, options: Options) -> tuple[Outcome, str]:
    """Deploy; return the outcome, and what the watch says at its end."""
    events: list[Event] = []
    outcome = deploy(arena.project, str(archive), options, on_event=events.append)
    return outcome, next(event.note for event in events if event.step.action == "watch" and event.state == "done")


def test_a_version_that_fails_every_user_over_grpc_is_taken_off_again(arena: Arena) -> None:
    failed = pytest.raises(ServerError, match=r"\d+ of \d+ requests failed within")
    with steady_load(arena.load(), closed=0, per_second=0) as load, failed as caught:
        deploy(arena.project, str(arena.build(GreyOnly())), LONG)
    assert "everything is as it was: 1.0 answers" in caught.value.message
    assert load.failed() == []
    assert any(b"InternalError" in sent.body for sent in load.sent)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"interpolation": "none of ours"}, id="422"),
        pytest.param({"max_image_pixels": 1}, id="413", marks=long("servers")),
    ],
)
def test_a_version_that_refuses_every_user_is_taken_off_again(arena: Arena, settings: dict[str, Any]) -> None:
    refused = pytest.raises(ServerError, match="were answered with a status of 400 to 499")
    with steady_load(arena.load(), grpc=0) as load, refused as caught:
        deploy(arena.project, str(arena.build(**settings)), LONG)
    assert "compared with 0% from the old version" in caught.value.message
    assert {sent.status for sent in load.failed()} <= {422, 413}
    assert load.failed()


def test_users_who_send_what_is_no_picture_to_either_version_do_not_keep_a_good_one_out(arena: Arena) -> None:
    with steady_load(arena.load(bad_every=4)) as load:
        outcome, said = watched(arena, arena.build(), WATCHED)
    assert outcome.result == "deployed"
    assert len(load.failed()) > 10
    errors = int(said.split(" item errors")[0].rpartition(" ")[2])
    assert errors > 0, said
    assert said.endswith(", 0 failed")


def test_archives_that_do_not_count_failures_are_deployed_and_seen_to_fail_all_the_same(arena: Arena) -> None:
    with steady_load(arena.load(), closed=1):
        outcome, said = watched(arena, arena.build(counts=False), WATCHED)
        assert outcome.result == "deployed"
        assert " 0 item errors" in said
    refused = pytest.raises(ServerError, match="were answered with a status of 400 to 499")
    with steady_load(arena.load(), closed=0, per_second=0), refused:
        deploy(arena.project, str(arena.build(GreyOnly(), counts=False)), LONG)
