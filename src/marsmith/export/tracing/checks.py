"""Checks before and after the conversion: reasons why an export may answer differently from its module.

``check_eager`` watches every operation of the eager module while it runs. ``check_exported`` runs the export on other
inputs and inspects its graph. Both report file and line if they are known.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from marsmith.config.form import Form
from marsmith.error_text import typed_line
from marsmith.errors import ExportError
from marsmith.export.tensor_calls import Call, Forward, batch_of, close, distance, outputs_of
from marsmith.export.tracing.devices import baked_devices
from marsmith.export.tracing.operations import Sighting, watch

# None of them is the traced size; together they cover cases without an example.
_BATCH_SIZES = (1, 3)
_SEED = 1
_SHOWN = 4


@dataclass(frozen=True)
class Findings:
    """Problems and their fixes; empty if there are none.

    Attributes:
        problems: one sentence each.
        tips: one sentence each.
    """

    problems: list[str] = field(default_factory=list)
    tips: list[str] = field(default_factory=list)

    def add(self, problem: str, tip: str) -> None:
        """Add a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)
        if tip not in self.tips:
            self.tips.append(tip)

    def require_none(self, what: str) -> None:
        """Raise ExportError with all problems, if there are any."""
        if self.problems:
            more = [f"and {len(self.problems) - _SHOWN} more"] if len(self.problems) > _SHOWN else []
            shown = "\n  ".join(self.problems[:_SHOWN] + more)
            raise ExportError(f"{what}:\n  {shown}", tip="; ".join(self.tips))


def check_eager(
    graph: torch.nn.Module, images: Sequence[torch.Tensor], *, method: Literal["trace", "script"] = "trace"
) -> list[str]:
    """Check that the eager module gives one row per input, deterministically, whatever the rest of the batch.

    Args:
        graph: the graph to export.
        images: rows of its input, uint8 (3, H, W), at least one.
        method: method of the export; control flow that depends on values is allowed in ``script``.

    Returns:
        Places where Python reads values from tensors: only scripting keeps decisions based on them.

    Raises:
        ExportError: it is in training mode, draws random numbers, branches on values, or mixes the rows of a batch.
    """
    return check_eager_call(graph, _image_rows(images), method=method)


def check_exported(eager: Forward, exported: Forward, images: Sequence[torch.Tensor], *, device: str = "cpu") -> None:
    """Check that the export agrees with the eager module on inputs and batch sizes that were not traced.

    Args:
        eager: uint8 (N, 3, H, W) to a tensor with N rows.
        exported: the same in float32; the graph of a TorchScript module is inspected as well.
        images: rows of the input, uint8 (3, H, W), at least one.
        device: target device of the export.

    Raises:
        ExportError: a batch size, a branch or a device is fixed, or the export draws random numbers.
    """
    check_exported_call(eager, exported, _image_rows(images), device=device)


def check_eager_call(module: torch.nn.Module, rows: Sequence[Call], *, method: Literal["trace", "script"]) -> list[str]:
    """Like ``check_eager`` for a module with several inputs; a row is one tensor per input, without the batch axis."""
    findings = Findings()
    _find_training_mode(module, findings)
    findings.require_none("the module is in training mode after build()")
    with torch.no_grad():
        rows = taken(module, rows)
        try:
            with watch(*batch_of(rows, 2)) as sightings:
                first = outputs_of(module(*sightings.inputs))
        except Exception as error:  # The module may raise any exception.
            raise ExportError(
                f"the eager module does not take a batch of 2: {typed_line(error)}",
                tip="every input has the batch on axis 0, and TorchServe batches as it likes",
            ) from error
        _find_random(sightings.random, findings)
        if method == "trace":
            _find_branches(sightings.branches, findings)
        if not findings.problems and not close(first, outputs_of(module(*batch_of(rows, 2)))):
            findings.add("two runs on the same input differ", "is a dropout active, or does forward() change it?")
        _find_training_mode(module, findings)
        findings.require_none("the eager module cannot be exported faithfully")
        _find_mixed_rows(module, rows, findings)
    findings.require_none("the eager module cannot answer batches")
    return [one.place for one in sightings.branches]


def taken(module: Forward, rows: Sequence[Call]) -> list[Call]:
    """Return the rows that a module accepts: one that checks values raises for others. The first must be accepted."""
    return [row for place, row in enumerate(rows) if not place or _error_for(module, row) is None]


def _error_for(module: Forward, row: Call) -> Exception | None:
    try:
        module(*batch_of([row], 1))
    except Exception as error:  # The module may raise any exception.
        return error
    return None


def check_exported_call(eager: Forward, exported: Forward, rows: Sequence[Call], *, device: str = "cpu") -> None:
    """Like ``check_exported`` for modules with several inputs."""
    findings = Findings()
    if isinstance(exported, torch.jit.ScriptModule):
        for problem, tip in baked_devices(exported, device):
            findings.add(problem, tip)
        findings.require_none("the export works on one device only")
    with torch.no_grad():
        known, rows = rows, taken(eager, rows)
        for row in known:
            if (error := _error_for(eager, row)) is not None and _error_for(exported, row) is None:
                findings.add(
                    f"the eager module raises for an input, and the export does not: {typed_line(error)}",
                    "export.method: script keeps checks of values",
                )
        for start, size in enumerate(_BATCH_SIZES):
            batch = batch_of(rows, size, start)
            got = _compare(eager, exported, batch, size, findings)
        if not findings.problems and not close(got, outputs_of(exported(*batch))):
            findings.add("two runs of the export differ", "is a dropout active, or does it draw random numbers?")
    findings.require_none("the export does not follow the eager module")


def tracer_findings(module: torch.nn.Module, inputs: Call) -> list[str]:
    """Return the tracer's warnings as ``file:line: what``: values that a trace keeps constant.

    Many are harmless, such as a check of a shape that never changes. They explain a difference, but are not errors.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            torch.jit.trace(module, inputs, check_trace=False)
    return [
        f"{one.filename}:{one.lineno}: {str(one.message).partition('.')[0]}"
        for one in caught
        if one.category.__name__ == "TracerWarning"
    ]


def reason_against(module: torch.nn.Module, form: Form) -> str | None:
    """Return why a module cannot be converted into a form; None if no reason is known."""
    if not any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return None
    if form.format != "torchscript":
        return f"a TorchScript file cannot be exported to {form.format}, which needs the Python module"
    if form.precision != "float32" and form.engine == "torch":
        return f"torch cannot bring a TorchScript file to {form.precision}: its weights may be constants of its code"
    return None


def reason_against_branches(places: Sequence[str], form: Form) -> str | None:
    """Return why an eager module that branches on values cannot be converted into a form; None if it can.

    Args:
        places: places where Python reads values from tensors.
        form: target form.
    """
    if not places or (form.format == "torchscript" and form.precision != "int8"):
        return None
    return f"{places[0]}: Python takes a value out of a tensor, and what it decides by that is lost in {form}"


def _find_training_mode(module: torch.nn.Module, findings: Findings) -> None:
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        shown = ", ".join(training[:_SHOWN]) + (f" and {len(training) - _SHOWN} more" if len(training) > _SHOWN else "")
        findings.add(
            f"still in training mode after eval(): {shown}",
            "a submodule overrides train() or forward() calls it: dropout and batch norms would stay active",
        )


def _find_random(sightings: Sequence[Sighting], findings: Findings) -> None:
    for one in sightings:
        dropout = "dropout" in one.where or "bernoulli" in one.operation
        findings.add(
            f"{one.place}: {one.operation} draws random numbers",
            "pass training=self.training to functional dropout" if dropout else "draw nothing in forward()",
        )


def _find_branches(sightings: Sequence[Sighting], findings: Findings) -> None:
    for one in sightings:
        findings.add(
            f"{one.place}: Python takes a value out of a tensor ({one.operation}), and a trace keeps the one it saw",
            "export.method: script keeps control flow; or write it with torch.where",
        )


def _find_mixed_rows(module: torch.nn.Module, rows: Sequence[Call], findings: Findings) -> None:
    seen: list[list[torch.Tensor]] = []
    for size in (1, 3):
        try:
            outputs = outputs_of(module(*batch_of(rows, size)))
        except Exception as error:  # The module may raise any exception.
            findings.add(
                f"it takes a batch of 2 and not of {size}: {typed_line(error)}",
                "look for sizes written as numbers: view(2, -1) should be flatten(1)",
            )
            continue
        if any(output.ndim == 0 or output.shape[0] != size for output in outputs):
            shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
            findings.add(f"for a batch of {size} it gives {shapes}", "axis 0 of every output must be the batch")
        seen.append(outputs)
    if not findings.problems and not close(seen[0], [output[:1] for output in seen[1]]):
        findings.add(
            "the answer for an input depends on the rest of the batch",
            "look for operations over axis 0, and for batch norms without running statistics",
        )


def _compare(eager: Forward, exported: Forward, batch: Call, size: int, findings: Findings) -> list[torch.Tensor]:
    want = outputs_of(eager(*batch))
    try:
        got = outputs_of(exported(*batch))
    except Exception as error:  # Engines raise various exceptions.
        findings.add(
            f"the export does not take a batch of {size}: {typed_line(error)}",
            "a batch size is baked in: look for sizes taken from a tensor as Python numbers",
        )
        return []
    shapes = [tuple(one.shape) for one in want], [tuple(one.shape) for one in got]
    if shapes[0] != shapes[1]:
        findings.add(
            f"for a batch of {size} the eager module gives {shapes[0]} and the export {shapes[1]}",
            "a batch size is baked in: look for sizes taken from a tensor as Python numbers",
        )
    elif not close(want, got):
        findings.add(
            f"the export differs from the eager module by {distance(want, got):.2e} in a batch of {size}",
            "a value that depends on the input was kept as it was while tracing: try export.method: script",
        )
    return got


def _image_rows(images: Sequence[torch.Tensor]) -> list[Call]:
    return [(image,) for image in [images[0], *_unlike(images[0]), *images[1:]]]


def _unlike(image: torch.Tensor) -> list[torch.Tensor]:
    """Return inputs unlike any example: black, white, and noise."""
    noise = torch.randint(0, 256, image.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(_SEED))
    return [torch.zeros_like(image), torch.full_like(image, 255), noise]


__all__ = [
    "Findings",
    "check_eager",
    "check_eager_call",
    "check_exported",
    "check_exported_call",
    "reason_against",
    "reason_against_branches",
    "taken",
    "tracer_findings",
]
