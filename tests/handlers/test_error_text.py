"""The line of an error that says what is wrong, and devices that a TorchScript file names."""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from marsmith.cli import main
from marsmith.errors import ExportError
from marsmith.export.recipes.torchscript import load_module
from marsmith.runtime.traceback import summary
from marsmith_handler import engines
from marsmith_handler.error_text import MOST_CHARACTERS, typed_line, useful_line
from marsmith_handler.graph_checks import absent_device
from support.handler_fixtures import Worker, write_manifest

CPU = torch.device("cpu")


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.max() > -1):
            raise ValueError("overexposed")
        return x


class Multiplies(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(7, 3)
        return x @ y


class NoTranslation(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.airy_ai(x)


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: torch.jit.ScriptModule = torch.jit.script(module.eval())
        return made


def _read_ir(folder: Path) -> Any:
    import openvino

    return openvino.Core().read_model(folder / "nothing.xml")


def _convert(folder: Path) -> Any:
    from marsmith_handler.engines.openvino_engine import convert, import_openvino

    openvino = import_openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(NoTranslation(), torch.zeros(3))
    return convert(openvino, traced, [3], openvino.Type.f32)


def _session(folder: Path) -> Any:
    import onnxruntime

    (folder / "a.onnx").write_bytes(b"no onnx")
    return onnxruntime.InferenceSession(str(folder / "a.onnx"))


def _load(folder: Path) -> Any:
    (folder / "a.pt").write_bytes(b"no zip")
    return torch.jit.load(str(folder / "a.pt"))


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (lambda _: scripted(Raises())(torch.zeros(2)), "ValueError: overexposed"),
        (
            lambda _: scripted(Multiplies())(torch.zeros(2, 5)),
            "mat1 and mat2 shapes cannot be multiplied (2x5 and 7x3)",
        ),
        (
            lambda _: nn.Linear(2, 3).load_state_dict({"weight": torch.zeros(3, 2)}),
            'Missing key(s) in state_dict: "bias"',
        ),
        (_read_ir, "Could not open the file"),
        (_convert, "No conversion rule found for operations: aten::special_airy_ai"),
        (_session, "INVALID_PROTOBUF"),
        (_load, "PytorchStreamReader failed"),
        (
            lambda _: torch._C._jit_set_bailout_depth("a"),  # type: ignore[attr-defined]
            "TypeError: _jit_set_bailout_depth(): incompatible function",
        ),
    ],
)
def test_the_cause_is_told_of_errors_that_many_lines_are_written_about(
    fails: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011, whatever each library raises
        fails(tmp_path)
    line = typed_line(caught.value)
    assert said in line
    assert "\n" not in line


def test_a_conversion_that_fails_leaves_logging_as_it_was(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return root.level, root.filters.copy(), root.handlers.copy()

    root = logging.getLogger()
    before = state()
    with pytest.raises(Exception, match="aten::special_airy_ai"):
        _convert(tmp_path)
    assert state() == before


JAVA = (
    "org.pytorch.serve.ModelException: bad\n\tat a.b(C.java:1)\nCaused by: java.io.IOException: no space left\n\tat c.d"
)
COMPILER = "C++ compile error\n\nCommand:\ng++ -O3 x.cpp\n\nOutput:\n/tmp/x.cpp:3:10: fatal error: omp.h: No such file"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (JAVA, "java.io.IOException: no space left"),
        (COMPILER, "/tmp/x.cpp:3:10: fatal error: omp.h: No such file"),
        ("Could not guard\n\nCaused by: (a.py:1 in f)\nmore", "Could not guard"),
        ("one line", "one line"),
        ("  \n first \n second", "first"),
        ("", ""),
        ("a headline:\n  what it is about", "a headline: what it is about"),
    ],
)
def test_texts_of_other_programs_are_read_too(text: str, line: str) -> None:
    assert useful_line(text) == line


def test_an_error_without_a_text_is_named_by_its_type() -> None:
    assert (useful_line(ValueError()), typed_line(ValueError())) == ("ValueError", "ValueError")


@given(st.text())
def test_any_text_gives_one_line_of_bounded_length(text: str) -> None:
    line = useful_line(text)
    assert len(line) <= MOST_CHARACTERS + 3
    assert len(line.splitlines()) <= 1
    assert bool(line) == bool(text.strip())


def test_the_summary_of_a_workers_traceback_is_the_cause_too() -> None:
    try:
        scripted(Raises())(torch.zeros(2))
    except Exception:
        assert summary(traceback.format_exc()) == "builtins.ValueError: overexposed"


# Devices ------------------------------------------------------------------------------------------------------------


class To(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to("cuda").mean((2, 3))


class Zeros(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + torch.zeros(3, device="cuda")


class Cuda(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cuda().mean((2, 3))


class Attribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cuda:0")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device).mean((2, 3))


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attribute = Attribute()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attribute(x * 2)


class WhereItIs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:
            x = x.to("cuda:0")
        return x.to("cpu").mean((2, 3)) + torch.zeros(3, device=x.device)


NAMING = [To, Zeros, Cuda, Attribute, Inside]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")


def saved(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(scripted(module), path)
    return path


@without_gpu
@pytest.mark.parametrize("kind", NAMING)
def test_a_device_that_is_baked_in_is_named_with_what_to_do(kind: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"computes on 'cuda(:0)?' whatever it is given") as caught:
        load_module(saved(kind(), tmp_path / "model.pt"))
    assert "code/__torch__" in caught.value.message
    assert "map_location moves weights" in str(caught.value.tip)


@without_gpu
@pytest.mark.parametrize("kind", NAMING)
def test_a_worker_says_so_when_it_loads_and_not_at_each_request(kind: type[nn.Module], tmp_path: Path) -> None:
    saved(kind(), tmp_path / "model.pt")
    write_manifest(tmp_path, "tensor_handler.py")
    (tmp_path / "model-config.yaml").write_text(json.dumps({"minWorkers": 1}))
    with pytest.raises(RuntimeError, match=r"model\.pt computes on 'cuda(:0)?' whatever it is given"):
        Worker(tmp_path, "tensor_handler.py")


def test_a_device_that_is_here_or_only_in_a_branch_is_nothing_to_refuse(tmp_path: Path) -> None:
    assert absent_device(scripted(WhereItIs())) is None
    module = load_module(saved(WhereItIs(), tmp_path / "model.pt"))
    assert module(torch.zeros(1, 3, 4, 4)).shape == (1, 3)


class OnlyEncodes(nn.Module):
    @torch.jit.export
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_a_module_with_other_methods_than_forward_is_loaded(tmp_path: Path) -> None:
    saved(OnlyEncodes(), tmp_path / "model.pt")
    engine = engines.load_engine(tmp_path, "model.pt", {}, CPU, 1)
    assert engine.run.encode(torch.ones(2)).tolist() == [2, 2]  # type: ignore[attr-defined]


def test_openvino_runs_a_file_for_another_device(tmp_path: Path) -> None:
    saved(To(), tmp_path / "model.pt")
    block = {"engine": "openvino", "engine_missing": "refuse"}
    engine = engines.load_engine(tmp_path, "model.pt", block, CPU, 1)
    assert torch.equal(engine(torch.ones(2, 3, 4, 4)), torch.ones(2, 3))


@without_gpu
def test_exporting_such_a_file_names_the_device_and_not_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config" / "models").mkdir(parents=True)
    for name in ("export", "handlers", "model_store"):
        (tmp_path / name).mkdir()
    saved(To(), tmp_path / "old.pt")
    spec = {"name": "old", "version": "1.0", "export": {"recipe": "torchscript:old.pt"}}
    spec |= {"handler": {"entry_point": "handlers/image_classifier_handler.py"}}
    (tmp_path / "config" / "models" / "old.yaml").write_text(json.dumps(spec))
    (tmp_path / "config.properties").write_text("")
    (tmp_path / "handlers" / "image_classifier_handler.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "old"]) == 1
    told = capsys.readouterr().err
    assert "computes on 'cuda' whatever it is given" in told
    assert "axis 0" not in told
