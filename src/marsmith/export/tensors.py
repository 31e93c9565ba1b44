"""Export of a ``TensorRecipe``: TorchScript with a signature, compared with the eager module. Imports torch.

The exported graph takes and returns tensors in order, whatever the signature of the module.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from marsmith.config.export_spec import ExportSpec, GateLimits
from marsmith.config.form import BASE, Form
from marsmith.error_text import typed_line, useful_line
from marsmith.errors import ExportError, MarsmithError
from marsmith.export import gate as parity
from marsmith.export.formats import torchscript_file
from marsmith.export.messages import JobRequest, JobResult
from marsmith.export.recipes.recipe import TensorRecipe
from marsmith.export.recipes.torchscript import load_module
from marsmith.export.recipes.weights import RANDOM_SEED, Weights, apply_weights, load_weights
from marsmith.export.tensor_calls import batch_of, close, outputs_of
from marsmith.export.tracing.checks import check_eager_call, check_exported_call


class TensorGraph(torch.nn.Module):
    """Passes inputs to the module in its own signature, and flattens its outputs.

    TorchScript can trace it. The trace takes and returns a sequence of tensors, whatever the module takes.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str], call: str) -> None:
        super().__init__()
        self.module = module
        self.names = list(names)
        self.call = call

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Map one tensor per input to one tensor, or to a tuple of them."""
        outputs = tuple(outputs_of(self.raw(*tensors)))
        return outputs[0] if len(outputs) == 1 else outputs

    def raw(self, *tensors: torch.Tensor) -> Any:
        """Return the module's own result."""
        if self.call == "mapping":
            return self.module(dict(zip(self.names, tensors, strict=True)))
        if self.call in ("list", "tuple"):
            return self.module(list(tensors) if self.call == "list" else tensors)
        return self.module(*tensors)


def output_names(raw: Any, wanted: Sequence[str]) -> list[str]:
    """Return the names of a module's flattened outputs: the wanted ones, the keys of its mapping, or numbers.

    Raises:
        ExportError: there are more or fewer names than tensors.
    """
    found = _names(raw, "")
    if wanted and len(wanted) != len(found):
        raise ExportError(f"the recipe names {len(wanted)} outputs ({', '.join(wanted)}), the module has {len(found)}")
    if wanted:
        return list(wanted)
    return ["output"] if found == [""] else [name if not name[:1].isdigit() else f"output_{name}" for name in found]


def _names(value: Any, name: str) -> list[str]:
    if isinstance(value, torch.Tensor):
        return [name]
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [one for key, part in parts for one in _names(part, f"{name}.{key}" if name else str(key))]


def call_rows(recipe: TensorRecipe) -> tuple[list[str], list[tuple[torch.Tensor, ...]]]:
    """Return the names of a recipe's inputs, and its examples as rows without the batch axis.

    Raises:
        ExportError: there are no examples, they are not mappings of names to tensors, or they are inconsistent.
    """
    try:
        examples = list(recipe.examples())
    except Exception as error:  # A recipe may raise any exception.
        raise ExportError(f"examples() of the recipe raises {type(error).__name__}: {error}") from error
    if not examples or not examples[0]:
        raise ExportError(
            "the recipe gives no examples", tip="one mapping of input names to tensors, batch on axis 0, is enough"
        )
    for example in examples:
        if not isinstance(example, Mapping) or not all(isinstance(name, str) for name in example):
            raise ExportError(
                f"an example of the recipe is a {type(example).__name__}, not a mapping of input names to tensors",
                tip='return [{"name of the first input": tensor, ...}]',
            )
    names = list(examples[0])
    rows: list[tuple[torch.Tensor, ...]] = []
    for example in examples:
        _check(example, names)
        rows += zip(*(example[name] for name in names), strict=True)
    return names, rows


def _check(example: Mapping[str, Any], names: Sequence[str]) -> None:
    if list(example) != list(names):
        raise ExportError(f"one example of the recipe has the inputs {list(example)}, another {list(names)}")
    wrong = [name for name, value in example.items() if not isinstance(value, torch.Tensor) or value.ndim == 0]
    if wrong:
        raise ExportError(
            f"the example input {wrong[0]!r} is not a tensor with a batch axis", tip="its axis 0 is the batch"
        )
    sizes = {name: value.shape[0] for name, value in example.items()}
    if len(set(sizes.values())) > 1:
        raise ExportError(f"the inputs of one example have different batch sizes: {sizes}")


def doubled(recipe: TensorRecipe, names: Sequence[str], batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return a batch whose dynamic axes are twice as long."""
    return tuple(_doubled(tensor, recipe.dynamic.get(name, ())) for name, tensor in zip(names, batch, strict=True))


def _doubled(tensor: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    for axis in axes:
        tensor = torch.cat([tensor, tensor], dim=axis)
    return tensor


def signature(
    recipe: TensorRecipe, names: Sequence[str], batch: Sequence[torch.Tensor], outputs: tuple[Any, Any]
) -> dict[str, Any]:
    """Return inputs, outputs and the handler's settings for export.json; None for an axis that may vary.

    Args:
        recipe: recipe with the dynamic axes.
        names: names of the inputs.
        batch: inputs of the module.
        outputs: its outputs for them, and for longer axes.
    """
    inputs = [
        {"name": name, "dtype": _dtype(tensor), "shape": _shape(tensor.shape, recipe.dynamic.get(name, ()))}
        for name, tensor in zip(names, batch, strict=True)
    ]
    first, second = map(outputs_of, outputs)
    given = []
    for name, tensor, longer in zip(output_names(outputs[0], recipe.outputs), first, second, strict=True):
        varies = [axis for axis, size in enumerate(tensor.shape) if longer.shape[axis] != size]
        given.append({"name": name, "dtype": _dtype(tensor), "shape": _shape(tensor.shape, varies)})
    settings = {
        "inputs": [{**one, "shape": one["shape"][1:]} for one in inputs],
        "outputs": [one["name"] for one in given],
    }
    return {"inputs": inputs, "outputs": given, "preprocessing": {"byTheHandler": settings, "inTheGraph": {}}}


def _shape(shape: Sequence[int], varies: Sequence[int]) -> list[int | None]:
    return [None, *(None if axis in varies else size for axis, size in enumerate(shape[1:], start=1))]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


SERIALIZED_FILE = "model.pt"
_TIP = "try export.method: script (or trace), or set export.gate.float32 if the difference is intended"


class TensorJob:
    """Export job of a tensor model; like ``export_job.Job`` for images."""

    def __init__(self, request: JobRequest, recipe: TensorRecipe, on_step: Callable[[str], None]) -> None:
        self.request = request
        self.recipe = recipe
        self.on_step = on_step
        self.spec = ExportSpec.model_validate(request.export)
        torch.set_num_threads(request.threads)

    def run(self) -> JobResult:
        """Build, convert, compare and save.

        Raises:
            ExportError: the recipe, the weights or the module cannot be exported; no file is left in the folder.
        """
        if Form.parse(self.request.form) != BASE:
            raise ExportError(
                f"{self.request.form}: a tensor recipe is exported as {BASE}", tip="leave out format, precision, engine"
            )
        root = Path(self.request.root)
        module = _built(self.recipe)
        weights = load_weights(
            self.request.weights,
            self.recipe,
            root,
            allow_pickle=self.request.allow_pickle,
            strip_prefix=self.request.strip_prefix,
            wanted=module.state_dict().keys(),
        )
        apply_weights(module, weights, adapt=self.recipe.adapt_weights)
        names, self.rows = call_rows(self.recipe)
        self.eager = TensorGraph(module, names, self.recipe.call).eval()
        check_eager_call(self.eager, self.rows, method=self.spec.method)
        self.on_step(f"converting to TorchScript ({self.spec.method}, frozen)")
        target = Path(self.request.folder) / SERIALIZED_FILE
        torchscript_file.save_normalised(self._convert(), target)
        try:
            return self._compared(target, names, weights)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def rate(self, what: str, batch_size: int, seconds: float) -> float:
        """Run ``eager`` or ``form`` for at least ``seconds``; return rows per second."""
        forward = self.eager if what == "eager" else self.exported
        batch = batch_of(self.rows, batch_size)
        done, started = 0, time.perf_counter()
        with torch.inference_mode():
            while True:
                forward(*batch)
                done += batch_size
                elapsed = time.perf_counter() - started
                if elapsed >= seconds:
                    return done / elapsed

    def _convert(self) -> torch.jit.ScriptModule:
        if self.spec.method == "script" and self.recipe.call != "arguments":
            raise ExportError(
                f"a module that takes its inputs in one {self.recipe.call} cannot be scripted with a signature",
                tip="export.method: trace, or let forward() take one argument an input",
            )
        example = batch_of(self.rows, 2)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                if self.spec.method == "script":
                    made = torch.jit.script(self.eager.module)
                else:
                    made = torch.jit.trace(self.eager, example, check_trace=False)
                frozen: torch.jit.ScriptModule = torch.jit.freeze(made.eval())
            except Exception as error:  # torch raises various exceptions here.
                raise ExportError(
                    f"TorchScript's {self.spec.method} cannot express the module: {useful_line(error)}",
                    tip=f"try export.method: {'trace' if self.spec.method == 'script' else 'script'} in the spec",
                ) from error
        return frozen

    def _compared(self, target: Path, names: Sequence[str], weights: Weights) -> JobResult:
        self.on_step(f"comparing with the eager module, on {len(self.rows)} rows")
        started = time.perf_counter()
        self.exported = load_module(target)
        load_s = time.perf_counter() - started
        check_exported_call(self.eager, self.exported, self.rows)
        with torch.no_grad():
            report = self._signature(names)
            worst = max(self._error(size) for size in parity.BATCH_SIZES)
        limits = GateLimits(max_abs_error=self.spec.gate.limits("float32").max_abs_error)
        limit = limits.max_abs_error
        measured = parity.Parity(len(self.rows), worst)
        # Rows of tensors have no classes to compare.
        unknown = ("top1Agreement", "maxRelativeErrorBelow")
        record = {key: value for key, value in measured.record(limits).items() if key not in unknown}
        failed = limit is not None and worst > limit
        return JobResult(
            serialized_file=str(target),
            companions=[],
            engine_file=None,
            report={**report, "weights": weights.record},
            labels={},
            files=[str(weights.file)] if weights.file else [],
            parity={"samples": len(self.rows), "max_abs_error": float(f"{worst:.4g}")},
            parity_record=record,
            problems=[f"the largest absolute error is {worst:.2e}, above {limit:.2e}"] if failed else [],
            tip=_TIP,
            bytes=target.stat().st_size,
            load_s=load_s,
        )

    def _signature(self, names: Sequence[str]) -> dict[str, Any]:
        """Describe inputs and outputs, and check that dynamic axes are not fixed."""
        batch = batch_of(self.rows, 2)
        longer = doubled(self.recipe, names, batch)
        raw = self.eager.raw(*batch)
        try:
            raw_longer = self.eager.raw(*longer)
        except Exception as error:  # The module may raise any exception.
            raise ExportError(
                f"the module does not take longer axes: {typed_line(error)}",
                tip="leave out what cannot vary from dynamic in the recipe",
            ) from error
        try:
            same = close(outputs_of(raw_longer), outputs_of(self.exported(*longer)))
        except Exception:  # The TorchScript interpreter raises various exceptions.
            same = False
        if not same:
            raise ExportError(
                f"the length of an axis is baked into the export: {', '.join(self.recipe.dynamic)}",
                tip="look for sizes taken from a tensor as Python numbers, or try export.method: script",
            )
        return signature(self.recipe, names, batch, (raw, raw_longer))

    def _error(self, size: int) -> float:
        batch = batch_of(self.rows, size)
        pairs = zip(outputs_of(self.eager(*batch)), outputs_of(self.exported(*batch)), strict=True)
        differences = [float((want.double() - got.double()).abs().max()) for want, got in pairs if want.numel()]
        if any(difference != difference for difference in differences):  # NaN is not equal to itself.
            raise ExportError("the module gives values that are not finite", tip="are these the right weights?")
        return max(differences, default=0.0)


def _built(recipe: TensorRecipe) -> torch.nn.Module:
    torch.manual_seed(RANDOM_SEED)
    try:
        module = recipe.build()
    except MarsmithError:
        raise
    except Exception as error:  # A recipe may raise any exception.
        raise ExportError(f"build() of the recipe raises {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"build() of the recipe returns {type(module).__name__}, not a torch.nn.Module")
    return module.eval()
