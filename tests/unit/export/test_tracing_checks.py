from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from marsmith.config.form import Form
from marsmith.errors import ExportError
from marsmith.export.tracing.checks import check_eager, check_exported, reason_against, tracer_findings

IMAGES = list(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


class Means(nn.Module):
    """(N, 3, 8, 8) to (N, 3); a test puts a pitfall after it."""

    def __init__(self, then: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.then = then
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.then(images.float().mean((2, 3)) / 255)


def branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.mean() > 0.5 else x


def traced(module: nn.Module, size: int = 2) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module.eval(), torch.stack(IMAGES[:1] * size), check_trace=False)
        return torch.jit.freeze(made)


def test_a_sound_module_passes_before_and_after() -> None:
    spread = Means(lambda x: x[:, :, None, None].expand(-1, -1, 4, 4))
    pool = nn.AdaptiveAvgPool2d(1)
    graph = nn.Sequential(spread, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), pool, nn.Flatten()).eval()
    check_eager(graph, IMAGES)
    check_exported(graph, traced(graph), IMAGES)


@pytest.mark.parametrize(
    "pitfall",
    [
        branch,
        lambda x: x + int(x.sum()),
        lambda x: x if torch.equal(x, x + 1) else x * 2,
        lambda x: x[: x.shape[0]] * float(x.max()),
    ],
)
def test_control_flow_that_depends_on_values_is_named_with_file_and_line_unless_scripted(pitfall: Any) -> None:
    module = Means(pitfall).eval()
    with pytest.raises(ExportError) as caught:
        check_eager(module, IMAGES)
    first = pitfall.__code__.co_firstlineno
    assert any(f"{__file__}:{line}: Python takes a value out" in caught.value.message for line in (first, first + 1))
    assert "script" in str(caught.value.tip)


def test_scripting_may_branch_on_values() -> None:
    check_eager(Means(lambda x: x * 2 if x.max() > -1 else x).eval(), IMAGES, method="script")


def test_numbers_from_shapes_and_from_weights_are_no_findings() -> None:
    module = Means().eval()
    module.then = lambda x: x.reshape(int(x.size(0)), -1) * module.scale.item() if x.shape[1] == 3 else x
    check_eager(module, IMAGES)


def test_a_submodule_that_stays_in_training_mode_is_named() -> None:
    class Stubborn(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Stubborn:
            super().train(True)
            return self

    graph = nn.Sequential(Means(), Stubborn(3)).eval()
    with pytest.raises(ExportError, match=r"training mode after eval\(\): 1$"):
        check_eager(graph, IMAGES)


@pytest.mark.parametrize(
    ("pitfall", "message"),
    [
        (lambda x: functional.dropout(x, 0.5), r"test_tracing_checks.py:\d+: aten::.*random"),
        (lambda x: functional.dropout(x, 0.5, training=True), "training=self.training"),
        (lambda x: x + torch.rand_like(x), "aten::rand_like draws random numbers"),
        (torch.bernoulli, "aten::bernoulli draws"),
    ],
)
def test_random_operations_are_named(pitfall: Any, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        check_eager(Means(pitfall).eval(), IMAGES)
    assert re.search(message, f"{caught.value.message} {caught.value.tip}")


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_fused_attention_is_random_only_where_it_drops_something(dropout_p: float) -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        heads = x[:, None, :, None].expand(-1, 2, -1, 16)
        return functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout_p).flatten(1)

    if dropout_p == 0:
        check_eager(Means(attend).eval(), IMAGES)
    else:
        with pytest.raises(ExportError, match="draws random numbers"):
            check_eager(Means(attend).eval(), IMAGES)


def test_a_module_that_counts_its_calls_is_found_by_running_it_twice() -> None:
    calls = iter(range(100))
    with pytest.raises(ExportError, match="two runs on the same input differ"):
        check_eager(Means(lambda x: x + next(calls)).eval(), IMAGES)


@pytest.mark.parametrize(
    ("pitfall", "message"),
    [
        (lambda x: x.view(2, -1), "not of 1|batch of 3 and not|not of 3"),
        (lambda x: x.mean(0), r"for a batch of 1 it gives \(3,\)"),
        (lambda x: x - x.mean(0, keepdim=True), "depends on the rest of the batch"),
        (lambda x: functional.batch_norm(x, None, None, training=True), "not of 1"),
    ],
)
def test_rows_that_are_not_independent_are_refused(pitfall: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_eager(Means(pitfall).eval(), IMAGES)


def test_a_batch_size_baked_in_is_found_in_the_export() -> None:
    module = Means(lambda x: x.reshape(int(x.shape[0].item() if isinstance(x.shape[0], torch.Tensor) else 2), -1))
    eager = Means().eval()
    with pytest.raises(ExportError, match="batch of 1") as caught:
        check_exported(eager, traced(module), IMAGES)
    assert "baked in" in str(caught.value.tip)


def test_a_branch_that_a_trace_has_lost_is_found_in_the_export() -> None:
    module = Means(lambda x: torch.cat([branch(row[None]) for row in x])).eval()
    dark = [image // 4 for image in IMAGES]
    with pytest.raises(ExportError, match=r"batch of|differs"):
        check_exported(module, traced(module), dark)


@pytest.mark.parametrize(
    "move", [lambda x: x.cpu(), lambda x: x.to("cpu") + 1, lambda x: x.to(x.device, torch.float64)]
)
def test_a_device_baked_in_is_found_in_the_graph(move: Any) -> None:
    module = Means(move).eval()
    with pytest.raises(ExportError, match="moved to 'cpu' whatever device"):
        check_exported(module, traced(module), IMAGES)


def test_a_tensor_made_on_another_device_than_the_export_is_for_is_found() -> None:
    module = Means(lambda x: x + torch.zeros(x.shape[0], 3)).eval()
    check_exported(module, traced(module), IMAGES)
    with pytest.raises(ExportError, match="aten::zeros makes a tensor on 'cpu'; the export is for 'cuda'"):
        check_exported(module, traced(module), IMAGES, device="cuda")


def test_the_tracers_warnings_become_lines_with_their_place() -> None:
    (finding,) = tracer_findings(Means(branch).eval(), (torch.stack(IMAGES),))
    place = f"{__file__}:{branch.__code__.co_firstlineno + 1}"
    assert finding.startswith(f"{place}: Converting a tensor to a Python boolean")


def test_what_a_module_returns_must_be_tensors() -> None:
    with pytest.raises(ExportError, match="returns str, not tensors"):
        check_eager(Means(lambda x: "no").eval(), IMAGES)  # type: ignore[arg-type,return-value]


def test_a_torchscript_file_goes_into_few_forms() -> None:
    module = nn.Sequential(traced(Means()))
    assert reason_against(module, Form.parse("torchscript/float32/openvino")) is None
    assert reason_against(module, Form.parse("torchscript/bfloat16/openvino")) is None
    assert "onnx" in str(reason_against(module, Form.parse("onnx/float32/onnxruntime")))
    assert "bfloat16" in str(reason_against(module, Form.parse("torchscript/bfloat16/torch")))
    assert reason_against(Means(), Form.parse("pt2/float32/aot_inductor")) is None
