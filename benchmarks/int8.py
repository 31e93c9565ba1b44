"""int8 against eager float32: throughput and agreement of three networks, by form.

Run: python benchmarks/int8.py [--models efficientnet_lite0,resnet18,resnet50] [--wanted 0.985] [--rounds 8] [--json]

Crops of photos for calibration, for the search of a plan and for the figures are drawn with seeds of their own. Forms
take turns with the eager module, so that other work on the machine hurts all alike; throughputs are medians.

EfficientNet-Lite0 has its real weights. The ResNets' cannot be had without a network: theirs are random (seed 0), their
batch norms have the statistics of the calibration crops, and their last layer is fitted, by ridge regression on the
calibration crops, to tell the photos apart. So there is one class a photo, and agreement means something.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import skimage
import sklearn
import torch
from torchvision.transforms.v2 import functional

from marsmith.config.form import Form
from marsmith.errors import ExportError
from marsmith.export.crops import random_crops
from marsmith.export.image_graph import ImageGraph
from marsmith.export.int8.engines import open_in_engine
from marsmith.export.int8.plan import Int8Plan
from marsmith.export.int8.quantize import ExpectedAgreement, quantize, search_plan
from marsmith.export.recipes.recipe import ImagePreprocessing, Recipe, load_image_recipe

ROOT = Path(__file__).parents[1]
FORMS = ("torchscript/int8/onnxruntime", "torchscript/int8/openvino", "torchscript/int8/torch")
CALIBRATION, TUNING, VALIDATION = (96, 1), (162, 2), (216, 3)
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One form of one network; ratios are to the eager float32 module, agreement is on held-out crops."""

    model: str
    form: str
    plan: str
    ratio_batch_8: float
    ratio_batch_1: float
    top1: float
    top5: float
    cosine: float
    search_s: float


def photos() -> list[bytes]:
    """The photographs of scikit-image and scikit-learn, encoded."""
    first = Path(skimage.__file__).parent / "data"
    second = Path(sklearn.__file__).parent / "datasets" / "images"
    names = "astronaut.png camera.png chelsea.png coffee.png coins.png motorcycle_left.png rocket.jpg"
    files = [*(first / name for name in names.split()), second / "china.jpg", second / "flower.jpg"]
    return [file.read_bytes() for file in files]


def crops(pictures: Sequence[bytes], preprocessing: ImagePreprocessing, count: int, seed: int) -> list[torch.Tensor]:
    """Crops of 35 to 100% of the area, in turn from each photo, half of them mirrored, 20% darker to 20% brighter."""
    draw = random.Random(seed)
    made = random_crops(pictures, preprocessing, count=count, seed=seed)
    return [functional.adjust_brightness(crop, draw.uniform(0.8, 1.2)).contiguous() for crop in made]


def network(recipe: Recipe, calibration: Sequence[torch.Tensor], classes: int) -> ImageGraph:
    """The eager module of a recipe."""
    torch.manual_seed(0)
    module = recipe.build().eval()
    if recipe.bundled_weights is not None:
        module.load_state_dict(torch.load(recipe.bundled_weights(), weights_only=True))
        return ImageGraph(module, recipe.preprocessing).eval()
    return wake(ImageGraph(module, recipe.preprocessing).eval(), calibration, classes)


def wake(graph: ImageGraph, calibration: Sequence[torch.Tensor], classes: int) -> ImageGraph:
    """Give batch norms the statistics of the crops, and fit the last layer to tell the photos apart."""
    backbone = graph.classifier
    width = int(backbone.fc.in_features)  # type: ignore[union-attr, arg-type]
    backbone.fc = torch.nn.Identity()
    pixels = ((torch.stack(list(calibration)).float() - graph.mean) / graph.std).split(16)
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the mean over all batches
            norm.reset_running_stats()
        backbone.train()
        for batch in pixels:
            backbone(batch)
        backbone.eval()
        features = torch.cat([backbone(batch) for batch in pixels]).double()
    wanted = torch.eye(classes, dtype=torch.float64)[torch.arange(len(features)) % classes] * 10
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - mean) / spread
    solved = torch.linalg.solve(scaled.T @ scaled + 10 * torch.eye(width, dtype=torch.float64), scaled.T @ wanted)
    last = torch.nn.Linear(width, classes)
    weight = (solved / spread[:, None]).T
    last.weight.data, last.bias.data = weight.float(), (wanted.mean(0) - weight @ mean).float()
    backbone.fc = last
    return graph.eval()


def outputs(forward: Forward, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Run in batches of 8."""
    with torch.inference_mode():
        return torch.cat([forward(torch.stack(list(images[i : i + 8]))) for i in range(0, len(images), 8)])


def ratio(eager: Forward, other: Forward, batch: torch.Tensor, rounds: int) -> float:
    """How many times the throughput of ``eager`` the other has, medians of turns."""
    times: dict[int, list[float]] = {0: [], 1: []}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for key, forward in enumerate((eager, other)):
                start = time.perf_counter()
                forward(batch)
                if turn:
                    times[key].append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def measure(name: str, form: Form, wanted: float, rounds: int) -> Row:
    """Search a plan, build, and measure on crops that neither has seen."""
    pictures = photos()
    recipe = load_image_recipe(ROOT / "export" / f"{name}.py")
    sets = (crops(pictures, recipe.preprocessing, *which) for which in (CALIBRATION, TUNING, VALIDATION))
    calibration, tuning, held_out = sets
    graph = network(recipe, calibration, len(pictures))
    agreement = ExpectedAgreement.of(graph, tuning)
    start = time.perf_counter()
    plan = search_plan(graph, form, calibration, agreement, wanted, lambda step: print(f"  {step}", file=sys.stderr))
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = quantize(graph, form, plan, calibration, tuning[:2], Path(folder))[0]
        forward = open_in_engine(path, form.engine)
    want, got = outputs(graph, held_out), outputs(forward, held_out)
    few = min(5, want.shape[1])
    shared = [
        len(set(a) & set(b)) / few for a, b in zip(*(x.topk(few).indices.tolist() for x in (want, got)), strict=True)
    ]
    batch = torch.stack(held_out[:8])
    return Row(
        name,
        str(form),
        describe(plan),
        ratio(graph, forward, batch, rounds),
        ratio(graph, forward, batch[:1], rounds * 4),
        float((want.argmax(1) == got.argmax(1)).double().mean()),
        statistics.mean(shared),
        float(torch.cosine_similarity(want, got).mean()),
        seconds,
    )


def describe(plan: Int8Plan) -> str:
    """A plan in a cell of a table."""
    bias = ", biases" if plan.correct_bias else ""
    return f"{plan.ranges}{bias}, {len(plan.float_layers)} float32"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="efficientnet_lite0,resnet18,resnet50")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--wanted", type=float, default=0.985)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if not options.json:
        print("| model | form | plan | batch 8 | batch 1 | top-1 | top-5 | cosine | search |\n|" + "---|" * 9)
    for name in options.models.split(","):
        for form in map(Form.parse, options.forms.split(",")):
            try:
                row = measure(name, form, options.wanted, options.rounds)
            except ExportError as error:
                row = Row(name, str(form), f"refused: {error}", *[float("nan")] * 6)
            print(json.dumps(asdict(row)) if options.json else cells(row), flush=True)


def cells(row: Row) -> str:
    """A row of the table."""
    figures = [f"{row.ratio_batch_8:.1f}x", f"{row.ratio_batch_1:.1f}x", f"{row.top1:.4f}", f"{row.top5:.3f}"]
    return (
        "| "
        + " | ".join([row.model, row.form, row.plan, *figures, f"{row.cosine:.5f}", f"{row.search_s:.0f} s"])
        + " |"
    )


if __name__ == "__main__":
    main()
