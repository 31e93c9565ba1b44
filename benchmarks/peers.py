"""marsmith, also as `marsmith host`, beside LitServe, FastAPI, BentoML and Ray Serve: one archive, handler and engine.

    python benchmarks/peers.py                                   # about 45 minutes
    python benchmarks/peers.py --rounds 1 --seconds 1 --only marsmith,host,litserve

Each server is set up as its documentation advises and gets several set-ups (workers x threads, batches of 8 and of 4
with the advised and with a small timeout); its best one in each column counts. A round starts every server in a new
order, warms it up, loads it with 1, 8 and 32 clients over HTTP on loopback, and stops it. All send the same photos, and
every answer must have the best label that the others gave to the same photo. Set-ups that are far from their server's
best after the first round are not tried again. What decode and model reach in process, with no server, is measured in
each round too: how far ahead of a peer any server could be.

``--part payload`` repeats LitServe's own benchmark, which its CI runs: ResNet-18, base64 in JSON of a 224x224 JPEG, 50
requests at once; with random weights, which change nothing about the time.

Needs what benchmarks/requirements.txt lists. Figures are medians over the rounds; ± is half the range.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from contenders import Contender, Serve, host_server, marsmith_server
from in_process import images_per_second
from machine import machine_line, machine_record
from marsmith import run_state
from marsmith.archive.unpacked import unpacked
from marsmith.build import build_from_spec
from marsmith.config import load_spec
from marsmith.inputs import Input
from marsmith.loadtest.bench import http_target
from marsmith.loadtest.http import HttpTarget
from marsmith.loadtest.tune.setup import Placement, Setup
from marsmith.loadtest.tune.variant import VariantMaker
from marsmith.project import Project
from marsmith.server.scratch import scratch_server
from peer_servers.peer_model import PeerSettings
from peer_setups import BATCH, MODULES, SHARES, SMALL_BATCH, described, in_json, peer_server, peers
from photos import photos
from turns import OURS, Row, median, records, table, take_turns, verdicts

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHIVE = REPOSITORY / "model_store" / "efficientnet_lite0-1.0.mar"
CLIENTS = (1, 8, 32)
# At 1 client nobody can be much faster than the model: there we want not to be slower.
GOALS = {1: 1.0, 8: 1.1, 32: 1.1}
HOST = "marsmith host"
HOST_GOALS = {1: 1.05, 8: 1.2, 32: 1.2}
# Of the host against TorchServe.
HOST_OURS_GOALS = {1: 1.05, 8: 1.05, 32: 1.05}
PAYLOAD_CLIENTS = 50


def our_setups() -> list[Setup]:
    """Return ours: the same workers, threads and batches, TorchServe's smallest and a longer delay, and no batches."""
    batching = [(size, delay) for size in (BATCH, SMALL_BATCH) for delay in (1, 5)]
    return [
        Setup(Placement(0, workers, threads), size, delay)
        for workers, threads in SHARES
        for size, delay in [*batching, (1, 1)]
    ]


def ours(project: Project, archive: Path, bodies: Sequence[bytes]) -> list[Contender]:
    """Return every set-up of ours."""
    return [
        Contender(OURS, marsmith_server(project, archive, bodies, setup), f"{_words(setup)}") for setup in our_setups()
    ]


def hosts(archive: Path, bodies: Sequence[bytes]) -> list[Contender]:
    """Return every set-up of the host, which knows no delay."""
    return [
        Contender(HOST, host_server(archive, bodies, setup), _words(setup).removesuffix(", 1 ms"))
        for setup in our_setups()
        if setup.max_batch_delay_ms == 1
    ]


def _words(setup: Setup) -> str:
    at = setup.placement
    batch = f"batch {setup.batch_size}, {setup.max_batch_delay_ms} ms" if setup.batch_size > 1 else "no batches"
    return f"{at.workers} x {at.threads}, {batch}"


class Limit:
    """What decode and model reach with no server at all, by how the cores are shared out; measured once a round."""

    def __init__(self, archive: Path, bodies: Sequence[bytes], seconds: float) -> None:
        self._archive, self._bodies, self._seconds = archive, bodies, seconds
        self._rates: dict[tuple[int, int], list[float]] = {share: [] for share in SHARES}

    def measure(self) -> None:
        """Measure one round."""
        for workers, threads in SHARES:
            rate = images_per_second(
                self._archive, self._bodies, workers=workers, threads=threads, batch_size=BATCH, seconds=self._seconds
            )
            self._rates[workers, threads].append(rate)

    @property
    def rate(self) -> float:
        """Images per second: the better median."""
        return max(map(median, self._rates.values()))


def compare_peers(
    archive: Path, names: Sequence[str], *, rounds: int, seconds: float, most: int | None = None
) -> tuple[list[Row], float]:
    """Compare the servers that are named on photos, at 1, 8 and 32 clients; return the limit too."""
    bodies = photos(8)
    with unpacked(archive) as content:
        project = Project(REPOSITORY)
        contenders = ours(project, archive, bodies) if OURS in names else []
        contenders += hosts(archive, bodies) if HOST in names else []
        contenders += peers([name for name in names if name not in (OURS, HOST)], content.folder, bodies)
        limit = Limit(archive, bodies, seconds)
        chosen = _first(contenders, most)
        rows = take_turns(chosen, rounds=rounds, seconds=seconds, clients=CLIENTS, begin=limit.measure)
    return rows, limit.rate


def _first(contenders: Sequence[Contender], most: int | None) -> list[Contender]:
    """Return the first few set-ups of each server; all of them where ``most`` is None."""
    seen: dict[str, int] = {}
    kept = []
    for each in contenders:
        seen[each.name] = seen.get(each.name, 0) + 1
        if most is None or seen[each.name] <= most:
            kept.append(each)
    return kept


# LitServe's own benchmark ---------------------------------------------------------------------------------------------


def noise(count: int) -> list[bytes]:
    """Return JPEG files of 224x224 random pixels, as that benchmark sends."""
    import numpy as np
    from PIL import Image

    bodies = []
    for number in range(count):
        stream = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG")
        bodies.append(stream.getvalue())
    return bodies


def resnet18_archive(folder: Path) -> Path:
    """Build ResNet-18 in float32 with random weights, in a project of its own."""
    # Copies: what a build reads must lie inside its project.
    for name in ("export", "handlers", "config"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    project = Project(folder.resolve())
    spec = load_spec(project, "resnet18")
    plain = spec.export.model_copy(update={"precision": "float32", "engine": "torch", "format": "torchscript"})
    spec = spec.model_copy(update={"export": plain})
    return build_from_spec(project, spec, weights="random", on_step=lambda step: print(step, file=sys.stderr)).path


def our_json_server(project: Project, archive: Path, bodies: Sequence[bytes], setup: Setup) -> Serve:
    """Serve an archive of ours for photos as base64 in JSON."""

    @contextmanager
    def serve() -> Iterator[HttpTarget]:
        with tempfile.TemporaryDirectory() as name:
            path = VariantMaker(archive, Path(name)).write(setup, Path(name) / f"{setup.version}.mar")
            inputs = [
                Input(f"{number}.json", None, in_json(body, "data"), "application/json")
                for number, body in enumerate(bodies)
            ]
            with scratch_server(project, {path.name: path}) as server:
                yield http_target(run_state.read(server), archive.name.rpartition("-")[0], None, inputs)

    return serve


def compare_payload(
    names: Sequence[str], *, rounds: int, seconds: float, most: int | None = None
) -> tuple[list[Row], float]:
    """Compare us with LitServe on its own benchmark's requests; return the limit too."""
    bodies = noise(2)
    with tempfile.TemporaryDirectory(prefix="marsmith-peers-") as scratch:
        archive = resnet18_archive(Path(scratch))
        with unpacked(archive) as content:
            contenders = [
                Contender(OURS, our_json_server(Project(REPOSITORY), archive, bodies, setup), _words(setup))
                for setup in our_setups()
                if OURS in names and setup.batch_size == BATCH
            ]
            for workers, threads in SHARES if "LitServe" in names else ():
                one = PeerSettings(str(content.folder), 0, workers, threads, BATCH, 10, "json")
                zeromq = replace(one, option="fast_queue")
                for settings in (one, zeromq, replace(zeromq, timeout_ms=1)):
                    serve = peer_server("LitServe", settings, bodies)
                    contenders.append(Contender("LitServe", serve, described(settings)))
            limit = Limit(archive, bodies, seconds)
            chosen = _first(contenders, most)
            rows = take_turns(chosen, rounds=rounds, seconds=seconds, clients=(PAYLOAD_CLIENTS,), begin=limit.measure)
    return rows, limit.rate


# The command ----------------------------------------------------------------------------------------------------------


def installed(names: Sequence[str]) -> list[str]:
    """Return the servers that are installed; say which are not."""
    lacking = [name for name in names if name in MODULES and importlib.util.find_spec(MODULES[name]) is None]
    if lacking:
        print(f"not installed, left out: {', '.join(lacking)}; see benchmarks/requirements.txt", file=sys.stderr)
    return [name for name in names if name not in lacking]


def chosen_servers(text: str | None) -> list[str]:
    """Return the servers that ``--only`` names, in the order of the table; all of them for None."""
    known = {OURS: OURS, "host": HOST, **{module: name for name, module in MODULES.items()}}
    if text is None:
        return installed(list(known.values()))
    wrong = sorted(set(text.split(",")) - set(known))
    if wrong:
        raise SystemExit(f"no server {', '.join(wrong)}: there are {', '.join(known)}")
    return installed([name for key, name in known.items() if key in text.split(",")])


def show(
    title: str, rows: Sequence[Row], limit: float, clients: tuple[int, ...], goals: dict[int, float]
) -> dict[str, Any]:
    """Print one comparison and return it as JSON, with its tables and targets for the page of all benchmarks."""
    found = verdicts([row for row in rows if row.server != HOST], clients, goals, limit)
    of_host = verdicts([row for row in rows if row.server != OURS], clients, HOST_GOALS, limit, name=HOST)
    of_host += verdicts([row for row in rows if row.server in (OURS, HOST)], clients, HOST_OURS_GOALS, name=HOST)
    lines = [f"{title}; ± is half the range over the rounds.", "", *table(rows, clients), ""]
    lines += [f"Decode and model in process, with no server: {limit:.0f} a second.", ""]
    lines += [f"- {each}" for each in found] + [f"- {HOST}: {each}" for each in of_host]
    print("", *lines, sep="\n")
    late = [f"{row.server}, {row.setup}" for row in rows if not all(c.driver_kept_up for c in row.cells.values())]
    if late:
        print(f"the driver did not keep up, so that these figures are too low: {'; '.join(late)}")
    return {
        "title": title,
        "rows": records(rows),
        "limit": round(limit, 2),
        "verdicts": [asdict(each) | {"met": each.is_met} for each in (*found, *of_host)],
        "tables": ["\n".join(lines) + "\n"],
        "targets": [
            *(target for each in found for target in each.targets(title.partition(",")[0])),
            *(target for each in of_host for target in each.targets(f"{HOST}, {title.partition(',')[0]}")),
        ],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: 4)")
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="of an image classifier")
    parser.add_argument("--only", help="servers: marsmith, host, litserve, fastapi, bentoml, ray, with commas")
    parser.add_argument("--part", choices=("peers", "payload", "both"), default="both")
    parser.add_argument("--set-ups", type=int, help="only the first so many set-ups of each server, to try things out")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    names, machine = chosen_servers(args.only), machine_record()
    print(machine_line(machine))
    result: dict[str, Any] = {"machine": machine, "rounds": args.rounds, "seconds": args.seconds}
    parts = []
    load = {"rounds": args.rounds, "seconds": args.seconds, "most": args.set_ups}
    if args.part != "payload":
        rows, limit = compare_peers(args.archive, names, **load)
        parts.append(show(f"{args.archive.name}, JPEG photos of 640x480", rows, limit, CLIENTS, GOALS))
    if args.part != "peers":
        rows, limit = compare_payload(names, **load)
        title = "LitServe's own benchmark, ResNet-18 float32, base64 in JSON of a 224x224 JPEG"
        parts.append(show(title, rows, limit, (PAYLOAD_CLIENTS,), {PAYLOAD_CLIENTS: 1.1}))
    result |= {"parts": parts, **{key: [one for part in parts for one in part[key]] for key in ("tables", "targets")}}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
