"""Which form of which model is how fast, and which passes the gate: the table in docs/export-table.md, by one command.

    python benchmarks/export.py                              # all four models, all forms, about an hour on 2 cores
    python benchmarks/export.py --models efficientnet_lite0 --quick

Every form that this machine supports is made, compared with the eager float32 module on photos and their crops, and
timed beside the eager module and all others, in turns, each in a process of its own, as `marsmith export --format auto
--precision auto --engine auto` does it. Ratios of one run can be compared, images per second of two runs cannot.

EfficientNet-Lite0 has its real ImageNet weights. torchvision's are fetched from its hub, which not every machine
reaches; --hub takes them. Otherwise they are drawn at random, the batch norms are calibrated on photos and the last
layer is fitted to tell crops of these photos apart: activations and answers are then as spread as those of a real
network, so that speed is right and agreement means something, though less than with real weights. The table says which.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.export import export_model
from marsmith.export_machine import versions
from marsmith.export_measure import Effort, Progress
from marsmith.formats.export_lock import Candidate, ExportLock
from marsmith.formats.export_spec import ExportSpec
from marsmith.formats.model_spec import ModelSpec
from marsmith.project_spec import load_spec
from marsmith.settings import Project

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parent.parent
TABLE = REPOSITORY / "docs" / "export-table.md"
MODELS = ("resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_lite0")
NAMES = ("astronaut", "camera", "chelsea", "coffee", "motorcycle_left", "rocket")
PHOTOS = [f"package:skimage/data/{name}.{'jpg' if name == 'rocket' else 'png'}" for name in NAMES]
REAL = "real ImageNet weights"
FITTED = "random weights, batch norms and last layer fitted to 6 photos"


def main() -> int:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--format", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--hub", action="store_true", help="take torchvision's weights from its hub")
    parser.add_argument("--quick", action="store_true", help="two short turns each, and the table is not written")
    parser.add_argument("--out", type=Path, help=f"instead of {TABLE.relative_to(REPOSITORY)}")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    wish = {"format": args.format, "precision": args.precision, "engine": args.engine}
    effort = Effort(rounds=2, turn_s=0.1) if args.quick else Effort(rounds=7, turn_s=0.4)
    with tempfile.TemporaryDirectory() as folder:
        project = _project(Path(folder))
        found = [_measure(project, name, wish, effort, hub=args.hub) for name in args.models]
    if args.json:
        print(json.dumps([{"weights": weights, **lock} for lock, weights in found], indent=2))
        return 0
    page = render([(ExportLock.model_validate(lock), weights) for lock, weights in found])
    print(page)
    target = args.out or (None if args.quick else TABLE)
    if target:
        target.write_text(page, encoding="utf-8")
    return 0


def _project(folder: Path) -> Project:
    for name in ("export", "handlers", "config"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("*.lock", "__pycache__"))
    return Project(folder.resolve())


def _measure(
    project: Project, name: str, wish: dict[str, str], effort: Effort, *, hub: bool
) -> tuple[dict[str, Any], str]:
    """Return what was measured of a model, as a lock, and which weights it had."""
    print(f"== {name}", file=sys.stderr, flush=True)
    spec = _with_photos(load_spec(project, name))
    weights, kind = None, REAL
    if spec.export.weights == "hub" and not hub:
        weights, kind = f"{name}.pth", FITTED
        # In a process of its own, so that this one stays without torch and its memory.
        command = [sys.executable, __file__, "fit", str(project.root / spec.export.recipe), str(project.root / weights)]
        subprocess.run(command, check=True)
    progress = Progress(step=lambda text: print(text, file=sys.stderr, flush=True))
    export = export_model(project, spec, weights=weights, overrides=wish, effort=effort, progress=progress)
    return dict(export.measured or {}), kind


def _with_photos(spec: ModelSpec) -> ModelSpec:
    block = spec.export.model_dump(exclude_unset=True)
    export = ExportSpec.model_validate({**block, "calibration": PHOTOS})
    return spec.model_copy(update={"export": export})


def render(found: list[tuple[ExportLock, str]]) -> str:
    """Return the page with the tables."""
    return "\n".join(
        [
            "# Models, forms, engines: speed and the gate's verdict",
            "",
            "Made by `python benchmarks/export.py`; how to read it, and what the gate asks, is told in",
            "[the gate and the lock](14-gate-and-lock.md). Images per second are medians of turns taken side by side;",
            "the speed-up is the geometric mean over the batch sizes 1 and 8, against the eager float32 module of the",
            "same run. Errors are those of probabilities.",
            "",
            _machine([lock for lock, _ in found]),
            "",
            *[line for lock, weights in found for line in _section(lock, weights)],
        ]
    )


def _machine(locks: list[ExportLock]) -> str:
    machine = locks[0].machine
    found = {name: version for lock in locks for one in lock.candidates for name, version in versions(one.what).items()}
    named = ", ".join(f"{name} {version}" for name, version in [("Python", machine["python"]), *sorted(found.items())])
    return f"Machine: {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['features'])}); {named}."


def _section(lock: ExportLock, weights: str) -> list[str]:
    eager = lock.eager_images_per_second
    rows = [f"| eager float32 module | | | | | {eager['1']:.1f} | {eager['8']:.1f} | 1.00 | | |"]
    rows += [_row(one, chosen=one.form == lock.chosen) for one in lock.candidates]
    reasons = [f"- `{one.form}`: {one.reason}" for one in lock.candidates if one.reason]
    return [
        f"## {lock.model}",
        "",
        f"{weights[0].upper()}{weights[1:]}. `auto` takes `{lock.chosen}`: {lock.why}.",
        "",
        "| form | verdict | largest error | top-1 | top-5 | images/s, 1 | images/s, 8 | speed-up | MB | load, s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        *([*reasons, ""] if reasons else []),
    ]


def _row(one: Candidate, *, chosen: bool) -> str:
    figures, rates = one.figures, one.images_per_second
    cells = [
        f"**`{one.form}`**" if chosen else f"`{one.form}`",
        one.verdict,
        f"{figures['max_abs_error']:.1e}" if figures else "",
        f"{figures['top1_agreement']:.4f}" if figures else "",
        f"{figures['top5_agreement']:.4f}" if figures else "",
        f"{rates['1']:.1f}" if rates else "",
        f"{rates['8']:.1f}" if rates else "",
        f"{one.speedup:.2f}" if one.speedup else "",
        f"{one.bytes / 1e6:.1f}" if one.bytes else "",
        f"{one.load_s:.2f}" if one.load_s is not None else "",
    ]
    return f"| {' | '.join(cells)} |"


def fit(recipe_file: Path, target: Path) -> None:
    """Draw weights at random, fit them to the photos (see the module), and save them as a state dict."""
    import torch

    from marsmith.image_crops import random_crops
    from marsmith.image_graph import ImageGraph
    from marsmith.image_sets import find_images
    from marsmith.recipe import Recipe, load_recipe

    recipe = load_recipe(recipe_file)
    if not isinstance(recipe, Recipe):
        raise SystemExit(f"{recipe_file} is no image classifier")
    torch.manual_seed(0)
    module = recipe.build()
    graph = ImageGraph(module, recipe.preprocessing).eval()
    photos = [path.read_bytes() for path in find_images(PHOTOS, REPOSITORY)]
    crops = random_crops(photos, recipe.preprocessing, count=24 * len(photos), seed=4)
    with torch.no_grad():
        _calibrate_norms(graph, crops)
        _fit_last_layer(graph, crops, [index % len(photos) for index in range(len(crops))])
    torch.save(module.state_dict(), target)


def _calibrate_norms(graph: torch.nn.Module, crops: list[torch.Tensor]) -> None:
    """Set the running statistics of batch norms to those of the crops."""
    import torch

    norms = [part for part in graph.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for start in range(0, len(crops), 32):
        graph(torch.stack(crops[start : start + 32]))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()


def _fit_last_layer(graph: torch.nn.Module, crops: list[torch.Tensor], photos: list[int]) -> None:
    """Set the last linear layer, by ridge regression, so that the class of a crop is its photo."""
    import torch

    last = [part for part in graph.modules() if isinstance(part, torch.nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    for start in range(0, len(crops), 32):
        graph(torch.stack(crops[start : start + 32]))
    hook.remove()
    features = torch.cat([torch.cat(seen), torch.ones(len(crops), 1, dtype=torch.float64)], 1)
    wanted = torch.zeros(len(crops), last.out_features, dtype=torch.float64)
    # Classes far apart, so that their order among all is no accident of neighbours.
    wanted[range(len(crops)), [photo * (last.out_features // len(set(photos))) for photo in photos]] = 10.0
    gram = features.T @ features
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solved = torch.linalg.solve(gram + ridge, features.T @ wanted).T.float()
    last.weight.copy_(solved[:, :-1])
    last.bias.copy_(solved[:, -1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        fit(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit(0)
    sys.exit(main())
