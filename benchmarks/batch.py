"""``marsmith batch``: how fast is a plan, how much of decode and model is passed on, and what does Ray Data do?

Run: python benchmarks/batch.py [--keys 1000000] [--files 100000] [--photos 400] [--rounds 5] [--skip plan,share,ray]
     [--json]

- ``plan``: a plan of so many keys from a CSV file that knows sizes and tags, and of so many empty files in a folder,
  each as a command of its own: seconds, seconds of the processor, and its largest memory.
- ``share``: in one process, with the very handler and engine of the archive, in turns with a new order each round:
  whole shards (read, decode, infer, encode, write a part) against decode and model alone on the same bytes in memory.
  Seconds of the processor, medians over the rounds.
- ``ray``: the command on two processes against ``map_batches`` of Ray Data with ``marsmith.scoring.ray.Archive``, two
  actors and one processor each, in turns: from the start of the command to the last row. It needs ``make heavy``.

The photos are JPEG of 640x480. The archive comes from ``marsmith archive efficientnet_lite0``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine_record
from marsmith.archive.unpacked import unpacked
from photos import photos

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHIVE = REPOSITORY / "model_store" / "efficientnet_lite0-1.0.mar"
RAY_PYTHON = REPOSITORY / ".venv-ray" / "bin" / "python"
PLAN_TARGET_S, PLAN_TARGET_MB, SHARE_TARGET, RAY_TARGET = 10.0, 200.0, 0.97, 1.2
# The same code as a step of Ray Data; prints the seconds from its start to the last row, without the start of Ray.
RAY_SCRIPT = """
import os, sys, time
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
import ray
from marsmith.scoring.ray import Archive
ray.init(num_cpus=4, object_store_memory=400 << 20, include_dashboard=False, logging_level="error", log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
begun = time.perf_counter()
photos = ray.data.read_binary_files(sys.argv[2], include_paths=True)
answers = photos.map_batches(
    Archive, fn_constructor_args=[sys.argv[1]], batch_size=int(sys.argv[4]), concurrency=2, num_cpus=1,
    batch_format="pyarrow",
)
answers.drop_columns(["bytes"]).write_parquet(sys.argv[3])
print(time.perf_counter() - begun)
"""


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("keys", 1_000_000), ("files", 100_000), ("photos", 400), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--skip", default="", help="parts that are left out, with commas between them")
    parser.add_argument("--json", action="store_true", help="print the figures with the machine as JSON")
    args = parser.parse_args()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "plan": lambda work: {"csv": plan_of_csv(work, args.keys), "folder": plan_of_folder(work, args.files)},
        "share": lambda work: share(work, args.photos, args.rounds),
        "ray": lambda work: against_ray(work, args.photos, args.rounds),
    }
    found: dict[str, Any] = {"machine": machine_record(), "load": os.getloadavg()[0]}
    for name, measure in parts.items():
        if name not in args.skip.split(","):
            with tempfile.TemporaryDirectory(prefix="marsmith-bench-") as work:
                found[name] = measure(Path(work))
                print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps(found, indent=2))
    return 0


def plan_of_csv(work: Path, count: int) -> dict[str, float]:
    """Plan keys from a table that knows sizes and tags, in another order than that of the plan."""
    table = work / "keys.csv"
    with table.open("w") as file:
        file.write("path,size,etag\n")
        for number in range(count):
            key = number * 7919 % count
            file.write(f"s3://bucket/photos/2026/{key % 365:03}/photo-{key:07}.jpg,{100_000 + key},{key:032x}\n")
    return _planned(work, table)


def plan_of_folder(work: Path, count: int) -> dict[str, float]:
    """Plan empty files in folders of a thousand."""
    for number in range(count):
        path = work / "photos" / f"{number // 1000:04}" / f"{number:07}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    return _planned(work, work / "photos")


def _planned(work: Path, source: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "marsmith", "batch", str(ARCHIVE), str(source), "--plan-only"]
    begun = time.perf_counter()
    process = subprocess.Popen([*command, "--to", str(work / f"to-{source.name}")], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        raise RuntimeError(f"the plan of {source} failed")
    return {
        "seconds": round(seconds, 2),
        "processor_s": round(used.ru_utime + used.ru_stime, 2),
        "largest_mb": round(used.ru_maxrss / 1024, 1),
    }


def share(work: Path, count: int, rounds: int) -> dict[str, Any]:
    """Compare whole shards with decode and model alone."""
    import torch

    from marsmith.scoring.destination import open_destination
    from marsmith.scoring.engine import InProcess, open_engine
    from marsmith.scoring.halving import ShardWork
    from marsmith.scoring.parts import encode_part
    from marsmith.scoring.plan import Settings, make_plan, shard_items
    from marsmith.scoring.score import score_shard
    from marsmith.scoring.sources import Selection, list_items

    bodies = _write_photos(work / "in", count)
    (work / "plan").mkdir()
    with unpacked(ARCHIVE) as members, open_destination(str(work / "to")) as to:
        size = members.batch_size
        settings = Settings("m:1", "a" * 64, shard_rows=count, batch_size=size, threads=1, reply="classes")
        items = list_items([str(work / "in")], Selection())
        plan, keys = make_plan(items, ["in"], settings, work / "plan")
        with open_engine(members.folder, batch_size=size, threads=1, gpu_id=None) as engine:
            assert isinstance(engine, InProcess)
            handler = engine._handler
            decode = importlib.import_module("marsmith_handler.image.decoding").decode_image

            def ours(number: int) -> None:
                batches = ShardWork.of(0, count, size).batches
                rows = score_shard(engine, shard_items(keys, plan, 0), batches, dead={}, root=work)
                to.create(f"part-{number}", encode_part(rows, plan))

            def limit(_: int) -> None:
                with torch.inference_mode():
                    for start in range(0, count, size):
                        handler.infer([decode(body, **handler.decoding) for body in bodies[start : start + size]])

            times = _turns({"ours": ours, "limit": limit}, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    per_item = {f"{name}_ms": round(1000 * value / count, 3) for name, value in medians.items()}
    return {**per_item, "share": round(medians["limit"] / medians["ours"], 4), "batch_size": size, "rounds": rounds}


def _turns(contestants: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Let all take turns, in a new order each round; return the processor seconds of each turn."""
    order, seed = list(contestants), random.Random(5)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for name in order:
        contestants[name](-1)
    for number in range(rounds):
        seed.shuffle(order)
        for name in order:
            begun = time.process_time()
            contestants[name](number)
            times[name].append(time.process_time() - begun)
    return times


def against_ray(work: Path, count: int, rounds: int) -> dict[str, Any]:
    """Compare the command with ``map_batches``; seconds of the whole, start of the processes and the model included."""
    if not RAY_PYTHON.exists():
        return {"skipped": "Ray is not installed: make heavy"}
    _write_photos(work / "in", count)
    (work / "pipeline.py").write_text(RAY_SCRIPT)
    paths = [REPOSITORY / "src", sysconfig.get_paths()["purelib"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}

    def ours(number: int) -> float:
        command = [sys.executable, "-m", "marsmith", "batch", str(ARCHIVE), str(work / "in"), "--workers", "2"]
        begun = time.perf_counter()
        subprocess.run([*command, "--shard-rows", "100", "--to", str(work / f"ours-{number}")], check=True)
        return time.perf_counter() - begun

    def rays(number: int) -> float:
        command = [
            str(RAY_PYTHON),
            str(work / "pipeline.py"),
            str(ARCHIVE),
            str(work / "in"),
            str(work / f"ray-{number}"),
        ]
        done = subprocess.run([*command, "32"], env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return float(done.stdout.splitlines()[-1])

    times: dict[str, list[float]] = {"ours": [], "ray": []}
    for number in range(rounds):
        for name, turn in random.Random(number).sample([("ours", ours), ("ray", rays)], 2):
            times[name].append(round(turn(number), 2))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"seconds": times, "medians": medians, "ratio": round(medians["ray"] / medians["ours"], 3), "photos": count}


def _write_photos(folder: Path, count: int) -> list[bytes]:
    folder.mkdir()
    bodies = photos(8)
    for number in range(count):
        (folder / f"{number:05}.jpg").write_bytes(bodies[number % 8])
    return [bodies[number % 8] for number in range(count)]


if __name__ == "__main__":
    sys.exit(main())
