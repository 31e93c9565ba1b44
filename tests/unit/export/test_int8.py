from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from marsmith.config.form import Form
from marsmith.errors import ExportError, FormatError
from marsmith.export import ImagePreprocessing
from marsmith.export.crops import random_crops
from marsmith.export.image_graph import ImageGraph
from marsmith.export.int8.engines import open_in_engine
from marsmith.export.int8.plan import Int8Plan, PlanCache
from marsmith.export.int8.quantize import quantize, search_plan
from marsmith.export.int8.search import ExpectedAgreement, restore_float_layers
from marsmith_handler import processor
from support.long_tests import long
from support.vision_fixtures import photo, wake

SMALL = ImagePreprocessing(resize=36, crop=(32, 32))
ONNX_RUNTIME = Form("torchscript", "int8", "onnxruntime")
OPENVINO = Form("torchscript", "int8", "openvino")
TORCH = Form("torchscript", "int8", "torch")
# What torch.ao can do.
PLAIN = Int8Plan(rounding="nearest", correct_bias=False)


class Block(torch.nn.Module):
    """Expand, depthwise, project, add: what mobile networks are made of."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(channels, wide, 1, bias=False),
            torch.nn.BatchNorm2d(wide),
            torch.nn.ReLU6(),
            torch.nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            torch.nn.BatchNorm2d(wide),
            torch.nn.ReLU6(),
            torch.nn.Conv2d(wide, channels, 1, bias=False),
            torch.nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU6(),
        Block(16),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 10),
    )
    wake(network)
    return network


@pytest.fixture(scope="module")
def graph() -> ImageGraph:
    return ImageGraph(small_network(), SMALL).eval()


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [photo(seed, (64, 48)) for seed in range(8)]


@pytest.fixture(scope="module")
def calibration(photos: list[bytes]) -> list[torch.Tensor]:
    return random_crops(photos, SMALL, count=32, seed=1)


@pytest.fixture(scope="module")
def images(photos: list[bytes]) -> torch.Tensor:
    return torch.stack(random_crops(photos, SMALL, count=24, seed=2))


def made(
    graph: torch.nn.Module, form: Form, plan: Int8Plan, calibration: list[torch.Tensor], folder: Path
) -> tuple[Path, Callable[[torch.Tensor], torch.Tensor]]:
    (path,) = quantize(graph, form, plan, calibration, calibration[:2], folder)
    return path, open_in_engine(path, form.engine)


# Where a worker refuses to run them too.
NEEDS_VNNI = pytest.mark.skipif(
    processor.overflows_in_int8(), reason="int8 of torch and OpenVINO overflows on x86 without VNNI"
)


@pytest.mark.parametrize(
    "form",
    [ONNX_RUNTIME, pytest.param(OPENVINO, marks=NEEDS_VNNI), pytest.param(TORCH, marks=NEEDS_VNNI)],
    ids=str,
)
def test_int8_answers_like_the_eager_module_at_every_batch_size(
    form: Form, graph: ImageGraph, calibration: list[torch.Tensor], images: torch.Tensor, tmp_path: Path
) -> None:
    plan = PLAIN if form == TORCH else Int8Plan()
    _, forward = made(graph, form, plan, calibration, tmp_path)

    for size in (1, 3, 8):
        with torch.inference_mode():
            want, got = graph(images[:size]), forward(images[:size])
        assert got.shape == want.shape
        assert got.dtype == torch.float32
        assert (got - want).abs().max() < 0.1
    with torch.inference_mode():
        assert (graph(images).argmax(1) == forward(images).argmax(1)).double().mean() >= 0.8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt" if form == TORCH else "model.onnx"]


def weights_of(path: Path) -> dict[str, int]:
    """Names of the 8-bit and float32 weights of convolutions in an ONNX file."""
    model = onnx.load(path)
    return {
        tensor.name: tensor.data_type
        for tensor in model.graph.initializer
        if ".weight" in tensor.name and len(tensor.dims) == 4
    }


def test_every_convolution_is_int8_with_a_scale_for_each_channel_and_batch_norms_are_gone(
    graph: ImageGraph, calibration: list[torch.Tensor], tmp_path: Path
) -> None:
    path, _ = made(graph, ONNX_RUNTIME, Int8Plan(), calibration, tmp_path)

    model = onnx.load(path)
    assert set(weights_of(path).values()) == {onnx.TensorProto.INT8}
    assert len(weights_of(path)) == 4
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    scales = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer if "weight" in tensor.name}
    assert [16] in [dims for name, dims in scales.items() if name.endswith("_scale")]


def test_layers_of_the_plan_stay_in_float32(graph: ImageGraph, calibration: list[torch.Tensor], tmp_path: Path) -> None:
    path, _ = made(graph, ONNX_RUNTIME, Int8Plan(float_layers=("classifier.0",)), calibration, tmp_path)

    kinds = weights_of(path)
    assert [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT] == ["classifier.0.weight"]


def test_a_plan_that_names_a_layer_of_another_model_is_refused(
    graph: ImageGraph, calibration: list[torch.Tensor], tmp_path: Path
) -> None:
    for form in (ONNX_RUNTIME, TORCH):
        plan = replace(PLAIN, float_layers=("layer9",))
        with pytest.raises(ExportError, match="layer9"):
            quantize(graph, form, plan, calibration, calibration[:2], tmp_path)
    assert not list(tmp_path.iterdir())


def test_correcting_biases_lowers_the_mean_error_of_the_outputs(
    graph: ImageGraph, calibration: list[torch.Tensor], images: torch.Tensor, tmp_path: Path
) -> None:
    def mean_error(correct: bool) -> float:
        _, forward = made(
            graph, ONNX_RUNTIME, Int8Plan(correct_bias=correct, rounding="nearest"), calibration, tmp_path
        )
        with torch.inference_mode():
            return float((forward(images).log() - graph(images).log()).mean(0).abs().sum())

    assert mean_error(True) < mean_error(False)


BUILD = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/unit/export", "handlers"]
import test_int8 as t
from support.vision_fixtures import photo
folder = Path(sys.argv[1])
crops = t.random_crops([photo(seed, (64, 48)) for seed in range(8)], t.SMALL, count=32, seed=1)
graph = t.ImageGraph(t.small_network(), t.SMALL).eval()
for name, plan in (("onnxruntime", t.Int8Plan()), ("torch", t.PLAIN)):
    t.quantize(graph, t.Form("torchscript", "int8", name), plan, crops, crops[:2], folder)
"""


@long("export")
def test_two_processes_build_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD, str(folder)], check=True)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})

    assert digests[0] == digests[1]
    assert set(digests[0]) == {"model.onnx", "model.pt"}


class Layers:
    """Runs of three of nine layers, ranked; agreement grows with how many are in float32."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.tried: list[int] = []
        self.rankings = 0

    def ranked(self) -> list[tuple[str, ...]]:
        self.rankings += 1
        return [("a", "b", "c"), ("b", "c", "d"), ("g", "h", "i"), ("d", "e", "f")]

    def agreement(self, plan: Int8Plan) -> float:
        self.tried.append(len(plan.float_layers))
        return 1.0 if len(plan.float_layers) >= self.needed else 0.9


def test_nothing_is_ranked_where_all_layers_can_be_int8() -> None:
    layers = Layers(needed=0)

    assert restore_float_layers(Int8Plan(), layers.ranked, layers.agreement, 0.95, lambda step: None) == Int8Plan()
    assert (layers.tried, layers.rankings) == ([0], 0)


def test_as_few_layers_as_will_do_are_given_back() -> None:
    layers, steps = Layers(needed=4), list[str]()

    plan = restore_float_layers(Int8Plan(), layers.ranked, layers.agreement, 0.95, steps.append)

    assert plan.float_layers == ("a", "b", "c", "d")
    assert layers.tried == [0, 7, 3, 4]
    assert "int8 with 3 of 9 layers in float32: agreement 0.9000, wanted 0.9500" in steps


def test_a_search_stops_at_once_where_giving_back_does_not_help() -> None:
    layers = Layers(needed=8)

    with pytest.raises(ExportError, match=r"keeps 0\.9000 of the answers at best, below 0\.9500"):
        restore_float_layers(Int8Plan(), layers.ranked, layers.agreement, 0.95, lambda step: None)
    assert layers.tried == [0, 7]


def test_a_search_gives_back_layers_until_the_agreement_holds(
    graph: ImageGraph, calibration: list[torch.Tensor]
) -> None:
    steps: list[str] = []
    tried: list[float] = []

    def agreement(forward: Callable[[torch.Tensor], torch.Tensor]) -> float:
        assert forward(calibration[0][None]).shape == (1, 10)
        tried.append(1.0 if tried else 0.9)
        return tried[-1]

    plan = search_plan(graph, ONNX_RUNTIME, calibration, agreement, 0.95, steps.append)

    assert len(tried) == 3
    assert len(plan.float_layers) == 3
    assert any("no layer in float32: agreement 0.9000" in step for step in steps)
    assert any(step.startswith("int8 with ranges by minmax") for step in steps)


def test_the_plan_of_another_engine_is_taken_where_it_holds(graph: ImageGraph, calibration: list[torch.Tensor]) -> None:
    known = Int8Plan(float_layers=("classifier.0",), images=24)
    agreements = iter([0.9, 1.0])
    seen: list[str] = []

    assert search_plan(graph, ONNX_RUNTIME, calibration, lambda forward: 1.0, 0.95, seen.append, known) is known
    found = search_plan(graph, ONNX_RUNTIME, calibration, lambda forward: next(agreements), 0.95, seen.append, known)
    assert found.float_layers == ()


def noisy(margins: list[float], noise: list[float]) -> tuple[ExpectedAgreement, Callable[[torch.Tensor], torch.Tensor]]:
    """Two classes whose logits are told by the image, and a forward that adds noise to the first."""
    images = [torch.full((3, 1, 1), index, dtype=torch.uint8) for index in range(len(margins))]

    def forward(added: list[float]) -> Callable[[torch.Tensor], torch.Tensor]:
        logits = torch.tensor([[margin + more, 0.0] for margin, more in zip(margins, added, strict=True)])
        return lambda batch: logits[batch[:, 0, 0, 0].long()].softmax(1)

    return ExpectedAgreement.of(forward([0.0] * len(margins)), images), forward(noise)


def test_near_ties_count_by_their_chance_and_not_by_how_they_fall() -> None:
    margins = [0.001, 0.001, *[3.0] * 18]
    noise = [0.1, -0.1] * 10
    lucky, forward = noisy(margins, [abs(one) for one in noise])
    unlucky, other = noisy(margins, noise)

    assert lucky(forward) == pytest.approx(0.95, abs=0.002)
    assert unlucky(other) == pytest.approx(0.95, abs=0.002)


def test_expected_agreement_falls_with_noise() -> None:
    margins = [0.025 * (1 + index) for index in range(40)]
    found = [noisy(margins, [size, -size] * 20) for size in (0.01, 0.2, 0.4)]
    agreements = [agreement(forward) for agreement, forward in found]

    assert agreements[0] == 1.0
    assert 1.0 > agreements[1] > agreements[2] > 0.7


def test_much_noise_on_one_image_does_not_count_for_all() -> None:
    agreement, forward = noisy([1.0] * 40, [-1.5, *[0.0] * 39])

    assert agreement(forward) == pytest.approx(1 - 0.5 / 40)


def test_jobs_of_a_run_share_plans_by_engine(tmp_path: Path) -> None:
    first, second = PlanCache(tmp_path, "onnxruntime"), PlanCache(tmp_path, "openvino")
    plan = Int8Plan(float_layers=("a",))
    assert (first.own(), second.of_others()) == (None, None)

    first.keep(plan)

    assert (first.own(), second.own(), second.of_others()) == (plan, None, plan)
    assert PlanCache(tmp_path, "torch").of_others() is None
    second.refuse(ExportError("keeps too little", tip="take float32"))
    with pytest.raises(ExportError, match="keeps too little"):
        second.own()
    assert PlanCache(None, "onnxruntime").own() is None
    PlanCache(None, "onnxruntime").keep(plan)


def test_no_calibration_images_are_refused(graph: ImageGraph, images: torch.Tensor, tmp_path: Path) -> None:
    for form in (ONNX_RUNTIME, TORCH):
        with pytest.raises(ExportError, match="calibration images"):
            quantize(graph, form, PLAIN, [], list(images[:2]), tmp_path)


def test_a_module_without_layers_is_refused(images: torch.Tensor, tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float().mean((2, 3))

    with pytest.raises(ExportError, match="nothing to quantise"):
        quantize(Mean(), ONNX_RUNTIME, Int8Plan(), list(images), list(images[:2]), tmp_path)


def test_a_torchscript_module_is_quantised_too(
    graph: ImageGraph, calibration: list[torch.Tensor], images: torch.Tensor, tmp_path: Path
) -> None:
    with torch.inference_mode():
        module = torch.jit.freeze(torch.jit.trace(graph, images[:2]).eval())
    _, forward = made(module, ONNX_RUNTIME, Int8Plan(), calibration, tmp_path)

    for size in (1, 5):
        with torch.inference_mode():
            assert (forward(images[:size]) - graph(images[:size])).abs().max() < 0.1


def test_a_plan_survives_its_record() -> None:
    plan = Int8Plan(ranges="percentile", percentile=99.9, correct_bias=False, float_layers=("a", "b"), images=7)

    assert Int8Plan.from_record(plan.to_record()) == plan
    assert Int8Plan.from_record({}) == Int8Plan()


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"range": "minmax"}, "did you mean"),
        ({"ranges": "median"}, "not one of"),
        ({"images": "many"}, "not a int"),
        ({"float_layers": [1]}, "not a tuple"),
        ({"percentile": 0}, "not above 50"),
    ],
)
def test_a_wrong_record_is_refused(record: dict[str, object], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        Int8Plan.from_record(record)
