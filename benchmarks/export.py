"""Which form of which model is how fast, and which passes the gate: docs/explanation/export-table.md, by one command.

    python benchmarks/export.py                              # all four models, all forms
    python benchmarks/export.py --models efficientnet_lite0 --quick

Every form that this machine supports is made, compared with the eager float32 module on photos and their crops, and
timed beside the eager module and all others, in turns, each in a process of its own, as `marsmith export --format auto
--precision auto --engine auto` does it. Ratios of one run can be compared, images per second of two runs cannot.

EfficientNet-Lite0 has its real ImageNet weights. torchvision's are fetched from its hub, which not every machine
reaches; --hub takes them. Otherwise they are drawn at random, with residual branches a quarter as strong as what they
are added to, the batch norms are calibrated on crops of six photos, and the last stage (ResNets: layer4 and fc;
MobileNetV3: the last four blocks and the classifier) is trained for 40 steps to tell the photos apart, on crops that
the export does not use. It is trained to leave as much between the first class and the second as EfficientNet-Lite0's
real weights do on such crops. So speed is right, and agreement means what it means where margins are as small as those;
but the front is random, the same photos are judged on, and real weights may well quantise worse or better. The table
says which.
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

from marsmith.config import ModelSpec, load_spec
from marsmith.config.export_spec import ExportSpec
from marsmith.export import export_model
from marsmith.export.lock import Candidate, ExportLock
from marsmith.export.machine import versions
from marsmith.export.measure import Effort, Progress
from marsmith.project import Project
from prose import fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

REPOSITORY = Path(__file__).resolve().parent.parent
TABLE = REPOSITORY / "docs" / "explanation" / "export-table.md"
MODELS = ("resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_lite0")
NAMES = ("astronaut", "camera", "chelsea", "coffee", "motorcycle_left", "rocket")
PHOTOS = [f"package:skimage/data/{name}.{'jpg' if name == 'rocket' else 'png'}" for name in NAMES]
REAL = "real ImageNet weights"
FITTED = "random weights, batch norms calibrated and the last stage trained on crops of 6 photos"
# Crops that the networks are fitted to; the export calibrates, chooses and judges on others, of seeds 1 to 3.
CROPS_A_PHOTO, NORM_CROPS, FIT_SEED = 32, 64, 4
# Of a crop's own photo, and of the others in turn: EfficientNet-Lite0's real weights give the best class of such crops
# 0.59 on average and leave 1.1 nats (a factor of 3) to the second. Whole ones would give margins that no network has.
SHARES = (0.6, 0.2, 0.1, 0.05, 0.03, 0.02)
STEPS, TRAIN_BATCH, LEARNING_RATE = 40, 12, 1e-4
LAST_BLOCKS = 4
BRANCH_WEIGHT = 0.25


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
    choices = {"format": args.format, "precision": args.precision, "engine": args.engine}
    effort = Effort(rounds=2, turn_s=0.1) if args.quick else Effort(rounds=7, turn_s=0.4)
    with tempfile.TemporaryDirectory() as folder:
        project = _project(Path(folder))
        found = [_measure(project, name, choices, effort, hub=args.hub) for name in args.models]
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
    project: Project, name: str, choices: dict[str, str], effort: Effort, *, hub: bool
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
    export = export_model(project, spec, weights=weights, overrides=choices, effort=effort, progress=progress)
    return dict(export.measured or {}), kind


def _with_photos(spec: ModelSpec) -> ModelSpec:
    block = spec.export.model_dump(exclude_unset=True)
    export = ExportSpec.model_validate({**block, "calibration": PHOTOS})
    return spec.model_copy(update={"export": export})


def render(found: list[tuple[ExportLock, str]]) -> str:
    """Return the page with the tables."""
    lines = [
        "# Models, forms, engines: speed and the gate's verdict",
        "",
        "Made by `python benchmarks/export.py`. [The gate and the lock](gate-and-lock.md) explains the verdicts.",
        "Images per second are medians of turns taken side by side. The speed-up is the geometric mean over the",
        "batch sizes 1 and 8, against the eager float32 module of the same run. Errors are those of probabilities.",
        "[int8](int8.md#resnets) describes the random weights.",
        "",
        _machine([lock for lock, _ in found]),
        "",
        *[line for lock, weights in found for line in _section(lock, weights)],
    ]
    return fold("\n".join(lines))


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


def fit(recipe_file: Path, target: Path, photos: Sequence[bytes]) -> None:
    """Draw weights at random, fit them to photos (see the module), and save them as a state dict.

    Args:
        recipe_file: of an image classifier.
        target: the file to write.
        photos: JPEG or PNG, at least as many as SHARES has.

    Raises:
        SystemExit: the recipe is none of an image classifier whose stages are known here.
    """
    import torch

    from marsmith.export.crops import random_crops
    from marsmith.export.image_graph import ImageGraph
    from marsmith.export.recipes.recipe import Recipe, load_recipe

    recipe = load_recipe(recipe_file)
    if not isinstance(recipe, Recipe):
        raise SystemExit(f"{recipe_file} is no image classifier")
    torch.manual_seed(0)
    module = recipe.build().eval()
    _damp_branches(module)
    graph = ImageGraph(module, recipe.preprocessing).eval()
    crops = torch.stack(random_crops(photos, recipe.preprocessing, count=CROPS_A_PHOTO * len(photos), seed=FIT_SEED))
    trunk, rest = _stages(module)
    with torch.no_grad():
        _calibrate_norms(graph, crops)
        seen = torch.cat([trunk((part - graph.mean) / graph.std) for part in crops.split(16)])
    _train(rest, seen, torch.arange(len(crops)) % len(photos), len(photos))
    torch.save(module.state_dict(), target)


def own_photos() -> list[bytes]:
    """Return the photos that the table is about."""
    from marsmith.export.images import find_images

    return [path.read_bytes() for path in find_images(PHOTOS, REPOSITORY)]


def _stages(module: torch.nn.Module) -> tuple[torch.nn.Sequential, torch.nn.Sequential]:
    """Return the front of a network, which stays as it was drawn, and the rest, which is trained."""
    import torch

    children = dict(module.named_children())
    pool, flat = children["avgpool"], torch.nn.Flatten()
    if "layer4" in children:
        front = [children[name] for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")]
        return torch.nn.Sequential(*front), torch.nn.Sequential(children["layer4"], pool, flat, children["fc"])
    stages = list(children["features"].children())
    at = len(stages) - LAST_BLOCKS
    return torch.nn.Sequential(*stages[:at]), torch.nn.Sequential(*stages[at:], pool, flat, children["classifier"])


def _damp_branches(module: torch.nn.Module) -> None:
    """Let what a residual block adds be small beside what it passes on.

    As drawn, both weigh the same in each block, and a network of fifty layers amplifies any error on its way. Training
    with residual branches that begin at zero (Goyal et al., 2017, section 5.1) leaves them small.
    """
    import torch
    from torchvision.models.resnet import BasicBlock, Bottleneck

    for block in module.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            torch.nn.init.constant_(norm.weight, BRANCH_WEIGHT)


def _calibrate_norms(graph: torch.nn.Module, crops: torch.Tensor) -> None:
    """Set the running statistics of batch norms to those of the crops."""
    import torch

    norms = [part for part in graph.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for part in crops[:NORM_CROPS].split(32):
        graph(part)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()


def _train(rest: torch.nn.Module, seen: torch.Tensor, photos: torch.Tensor, count: int) -> None:
    """Train the last stage to tell the photos apart, by cross-entropy with SHARES; batch norms stay as they are.

    Args:
        rest: takes what the front gives.
        seen: what the front gives for each crop (N, C, H, W).
        photos: number of the photo of each crop (N,).
        count: of photos.
    """
    import torch

    last = [part for part in rest.modules() if isinstance(part, torch.nn.Linear)][-1]
    # The class that comes second, third and so on is the next photo's: top 5 then mean something too.
    order = (photos[:, None] + torch.arange(len(SHARES))) % count
    wanted = torch.zeros(len(photos), last.out_features)
    wanted.scatter_(1, order * (last.out_features // count), torch.tensor(SHARES).expand(len(photos), len(SHARES)))
    with torch.no_grad():
        _fit_last_layer(rest, last, seen, wanted)
    optimizer = torch.optim.Adam(rest.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(FIT_SEED)
    for step in range(STEPS):
        # Down to nothing at the end, so that the last batch does not decide.
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        chosen = torch.randperm(len(seen), generator=generator)[:TRAIN_BATCH]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(rest(seen[chosen]), wanted[chosen]).backward()
        optimizer.step()


def _fit_last_layer(rest: torch.nn.Module, last: torch.nn.Linear, seen: torch.Tensor, wanted: torch.Tensor) -> None:
    """Start the last layer at what ridge regression gives for ``wanted``, which shortens training."""
    import torch

    inputs: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: inputs.append(given[0].double()))
    for part in seen.split(16):
        rest(part)
    hook.remove()
    features = torch.cat([torch.cat(inputs), torch.ones(len(seen), 1, dtype=torch.float64)], 1)
    logits = wanted.double().clamp_min(1e-4).log()
    gram = features.T @ features
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solved = torch.linalg.solve(gram + ridge, features.T @ logits).T.float()
    last.weight.copy_(solved[:, :-1])
    last.bias.copy_(solved[:, -1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        fit(Path(sys.argv[2]), Path(sys.argv[3]), own_photos())
        sys.exit(0)
    sys.exit(main())
