"""The part of `traffic.py` about many canaries in a row: good, failing, slow, disagreeing and crashing versions."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from faults import serving
from marsmith import run_state
from marsmith.client.key_file import read_key_file
from marsmith.deploy import Canary, deploy
from marsmith.deploy.rollout.observation import RolloutLimits
from marsmith.deploy.rollout.steps import Options
from marsmith.deploy.traffic.state import RolloutFile, RolloutState
from marsmith.project import Project
from support.handler_fixtures import CLASSES, ChannelMeans
from support.live_server import make_project, until
from support.packed_classifiers import pack_classifier
from support.pictures import picture
from support.steady_load import Sent, SteadyLoad, steady_load

MODEL = "colours"
OPTIONS = Options(keep=0, limits=RolloutLimits(max_latency_ratio=1000))
CANARY = Canary(steps=(5, 25, 50), interval_s=3, min_requests=10, max_wait_s=600, compare=50)


class Mistaken(ChannelMeans):
    """The colours, with their names exchanged."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of the wrong colours."""
        return torch.softmax(images.to(torch.float32).mean(dim=(2, 3)) / 64.0, dim=1).roll(1, 1)


# A line of the handler, and a word of the reason with which a version of the kind goes back; None: it is promoted.
KINDS: dict[str, tuple[str, str | None]] = {
    "good": ("", None),
    "failing": ("if self.calls > 20: raise ValueError('from now on')", "failed"),
    "slow": ("import time; time.sleep(0.4 if self.calls > 20 else 0)", "slow"),
    "disagreeing": ("", "replies"),
    # Once it has crashed, each new worker of it does too.
    "crashing": (
        "import os; p = {marker!r}; self.calls > 20 and open(p, 'w').close(); os.path.exists(p) and os._exit(3)",
        "failed",
    ),
}


@dataclass(frozen=True)
class Deploys:
    """Canaries in a row, under load.

    Attributes:
        ends: how often a version of each kind ended in which phase.
        as_expected: how many ended as they had to, for the reason that they had to.
        deploys: how many there were.
        requests: sent by users, by API, each once.
        failed: how many of them failed.
        wrong: replies with another class than one of the versions that answered then says.
    """

    ends: dict[str, int]
    as_expected: int
    deploys: int
    requests: dict[str, int]
    failed: int
    wrong: int


def measure(rounds: int) -> dict[str, object]:
    """Deploy ``rounds`` versions in a row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = pack_classifier(folder / "0", MODEL, "0", ChannelMeans())
        project = make_project(folder / "project", {f"{MODEL}-0.mar": first}, token_expiration_min="600")
        project.settings_file.write_text("front: envoy\n")
        with serving(project):
            return {"deploys": asdict(_deploys(project, folder, rounds))}


def tables(found: dict[str, object]) -> str:
    """Return the figures as Markdown."""
    row: dict[str, Any] = found["deploys"]  # type: ignore[assignment]
    total = sum(row["requests"].values())
    ways = ", ".join(f"{way} {count}" for way, count in sorted(row["requests"].items()))
    return "\n".join(
        [
            "| what | goal | measured |",
            "|---|---|---|",
            f"| ended as they had to, for the right reason | all {row['deploys']} | {row['as_expected']} |",
            f"| requests that failed | 0 | {row['failed']} of {total} ({ways}) |",
            f"| wrong replies | 0 | {row['wrong']} |",
            "",
            ", ".join(f"{end}: {count}" for end, count in row["ends"].items()),
        ]
    )


def _deploys(project: Project, folder: Path, count: int) -> Deploys:
    state = run_state.read(project)
    load = SteadyLoad(state, MODEL, read_key_file(state.key_file).inference.value, body=_photo)
    ends: Counter[str] = Counter()
    expected = wrong = seen = 0
    with steady_load(load, closed=1, per_second=30.0, grpc=1):
        until(lambda: load.count() > 50)
        for number in range(count):
            kind = list(KINDS)[number % len(KINDS)]
            rollout = _deployed(project, folder, kind, str(number + 1))
            ends[f"{kind}: {rollout.phase}"] += 1
            as_it_must = _is_expected(kind, rollout)
            expected += as_it_must
            ended = load.count()
            until(lambda ended=ended: load.count() > ended + 50)  # type: ignore[misc]
            # Requests that were under way when it ended belong to it.
            sent, seen = load.sent[seen:], len(load.sent)
            wrong += sum(_is_wrong(each, may_be_mistaken=kind == "disagreeing") for each in sent)
            failed = len(load.failed())
            print(
                f"{number + 1}: {kind}: {rollout.phase}: {rollout.reason}; {failed} failed, {wrong} wrong of {seen}"
                f" (load {os.getloadavg()[0]:.0f})",
                file=sys.stderr,
                flush=True,
            )
    return Deploys(dict(ends), expected, count, dict(load.by_way()), len(load.failed()), wrong)


def _deployed(project: Project, folder: Path, kind: str, version: str) -> RolloutState:
    module = Mistaken() if kind == "disagreeing" else ChannelMeans()
    line = KINDS[kind][0].format(marker=str(folder / f"{version}.crashed"))
    archive = pack_classifier(folder / version, MODEL, version, module, at_infer=line)
    deploy(project, str(archive), OPTIONS, strategy=CANARY)
    file = RolloutFile.of(project, MODEL)

    def over() -> bool:
        state = file.read()
        return state is not None and (state.is_over or state.phase == "inconclusive")

    until(over, 900)
    state = file.read()
    assert state is not None
    return state


def _is_expected(kind: str, rollout: RolloutState) -> bool:
    word = KINDS[kind][1]
    return rollout.phase == "promoted" if word is None else rollout.phase == "back" and word in rollout.reason


def _photo(marker: str) -> bytes:
    """Return a photo of the colour of a request's number; each has another shade."""
    number = int(marker[1:])
    shades = [number // 3 % 60, number // 180 % 60, number // 10_800 % 60]
    shades[number % 3] += 180
    return picture(*shades)


def _is_wrong(sent: Sent, *, may_be_mistaken: bool) -> bool:
    if sent.status != 200:
        return False
    reply = json.loads(sent.body)
    right = int(sent.marker[1:]) % 3
    allowed = {CLASSES[right], CLASSES[(right + 1) % 3]} if may_be_mistaken else {CLASSES[right]}
    return max(reply, key=reply.get) not in allowed
