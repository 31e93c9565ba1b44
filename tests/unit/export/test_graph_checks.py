"""An input that made a module raise makes every rewritten form of it raise, or there is no such form."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from marsmith.build.optimize.graph import rebuild, rebuilt_or_same
from marsmith.config.form import BASE, Form
from marsmith.errors import ExportError
from marsmith.export.classifier import ImageModule
from marsmith.export.serialize import serialize
from marsmith.export.tracing.checks import check_eager, check_exported, reason_against_branches
from marsmith_handler import engines, graph_checks

SIZE = (8, 8)


class Net(nn.Module):
    """(N, 3, 8, 8) to (N, 4), with a batch norm and a pooling whose own checks are about numbers of axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.pool(torch.relu(self.norm(self.convolution(x)))), 1)


class Plain(Net):
    pass


class IfRaise(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.max() > 1):
            raise ValueError("too bright")
        return torch.flatten(self.pool(self.norm(self.convolution(x))), 1)


class Assert(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert bool(x.max() <= 1), "too bright"
        return torch.flatten(self.pool(self.norm(self.convolution(x))), 1)


class TorchAssert(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(bool((x <= 1).all()), "too bright")
        return torch.flatten(self.pool(self.norm(self.convolution(x))), 1)


class Nested(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 4:  # noqa: SIM102, two blocks in the graph
            if bool(x.max() > 1):
                raise ValueError("too bright")
        return torch.flatten(self.pool(self.norm(self.convolution(x))), 1)


class Loop(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(x.shape[0]):
            if bool(x[i].max() > 1):
                raise ValueError("too bright")
        return torch.flatten(self.pool(self.norm(self.convolution(x))), 1)


class Else(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.max() <= 1):
            y = self.norm(self.convolution(x))
        else:
            raise ValueError("too bright")
        return torch.flatten(self.pool(y), 1)


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.checked = IfRaise()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.checked(x) * 2


class OfAShape(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[3] > 8:
            raise ValueError("too wide")
        return torch.flatten(self.pool(self.norm(self.convolution(x))), 1)


BY_VALUE = (IfRaise, Assert, TorchAssert, Nested, Loop, Else, Inside)


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: torch.jit.ScriptModule = torch.jit.script(module.eval())
        return made


def raises(module: Any, images: torch.Tensor) -> bool:
    try:
        with torch.inference_mode():
            module(images)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("kind", [*BY_VALUE, OfAShape])
def test_a_check_of_values_is_found_wherever_it_stands(kind: type[nn.Module]) -> None:
    (said,) = graph_checks.value_checks(scripted(kind()))
    assert "too bright" in said or "too wide" in said
    with pytest.raises(ExportError):
        rebuild(scripted(kind()))


def test_checks_of_how_many_axes_there_are_stand_in_the_way_of_nothing() -> None:
    assert graph_checks.value_checks(scripted(Plain())) == []
    assert not isinstance(rebuilt_or_same(scripted(Plain()), SIZE), torch.jit.ScriptModule)


@pytest.fixture(scope="module", params=BY_VALUE)
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A module, the same made anew as ``optimize`` does it, and what a worker with OpenVINO would run."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    old = scripted(request.param())
    module = ImageModule(rebuilt_or_same(old, SIZE)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = serialize(module, BASE, images=[torch.zeros(3, *SIZE)] * 2, folder=folder)
    new = torch.jit.load(files.serialized_file)
    engine = engines.load_engine(folder, files.serialized_file.name, {"engine": "openvino"}, torch.device("cpu"), 1)
    return old, new, engine


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=3))
@settings(max_examples=15)
def test_an_input_that_raised_still_raises_and_no_other_does(forms: tuple[Any, Any, Any], fill: list[float]) -> None:
    old, new, engine = forms
    images = torch.stack([torch.full((3, *SIZE), value) for value in fill])
    assert raises(old, images) == raises(new, images) == raises(engine, images) == (max(fill) > 1)


def test_openvino_is_refused_with_what_it_would_drop(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(scripted(IfRaise()), tmp_path / "model.pt")
    fell_back = engines.load_engine(tmp_path, "model.pt", {"engine": "openvino"}, torch.device("cpu"), 1).fell_back
    assert fell_back == "openvino would drop what model.pt raises for some inputs (too bright)"
    block = {"engine": "openvino", "engine_missing": "refuse"}
    with pytest.raises(RuntimeError, match=r"would drop what model\.pt raises"):
        engines.load_engine(tmp_path, "model.pt", block, torch.device("cpu"), 1)


# Eager modules ------------------------------------------------------------------------------------------------------

IMAGES = list(torch.randint(0, 200, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


class OfPixels(Net):
    """Takes uint8 and raises for a white image, which no example is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool(images.min() > 250):
            raise ValueError("an empty page")
        return torch.flatten(self.pool(self.norm(self.convolution(images.float() / 255))), 1)


def test_a_check_of_values_is_kept_by_scripting_alone() -> None:
    module = OfPixels().eval()
    with pytest.raises(ExportError, match=r"Python takes a value out of a tensor"):
        check_eager(module, IMAGES)
    places = check_eager(module, IMAGES, method="script")
    assert places
    assert places[0].startswith(f"{__file__}:")
    kept = {form: reason_against_branches(places, Form.parse(form)) is None for form in FORMS}
    assert kept == FORMS
    assert reason_against_branches([], Form.parse("onnx/float32/onnxruntime")) is None


FORMS = {
    "torchscript/float32/torch": True,
    "torchscript/bfloat16/torch": True,
    "torchscript/float32/openvino": True,
    "torchscript/int8/torch": False,
    "onnx/float32/onnxruntime": False,
    "pt2/float32/aot_inductor": False,
}


def test_an_export_that_no_longer_raises_is_found() -> None:
    module = OfPixels().eval()
    check_exported(module, scripted(OfPixels()), IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, torch.stack(IMAGES), check_trace=False)
    with pytest.raises(ExportError, match="raises for an input, and the export does not: ValueError: an empty page"):
        check_exported(module, traced, IMAGES)
