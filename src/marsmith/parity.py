"""How far an export is from the eager float32 module, measured on real inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from marsmith.errors import ExportError
from marsmith.formats.model_spec import Gate

# One, an odd one, and the batch sizes in between that show a batch size baked into the graph.
BATCH_SIZES = (1, 3, 8)


@dataclass(frozen=True)
class Parity:
    """The comparison of two modules.

    Attributes:
        samples: how many inputs were compared, over all batch sizes.
        max_abs_error: largest absolute difference of any output value.
        top1_agreement: share of the samples whose largest output is the same, 0 to 1.
    """

    samples: int
    max_abs_error: float
    top1_agreement: float

    def record(self, gate: Gate) -> dict[str, Any]:
        """Return what goes into export.json.

        The error is given as the power of ten that it stays below: its last digits depend on the processor, and an
        archive must not.
        """
        bound = 10.0 ** math.ceil(math.log10(self.max_abs_error)) if self.max_abs_error else 0.0
        return {
            "against": "the eager float32 module",
            "samples": self.samples,
            "batchSizes": list(BATCH_SIZES),
            "maxAbsErrorBelow": float(f"{bound:.0e}"),
            "top1Agreement": self.top1_agreement,
            "limits": {"maxAbsError": gate.max_abs_error, "top1Agreement": gate.top1_agreement},
        }


Forward = Callable[[torch.Tensor], torch.Tensor]


def compare(eager: Forward, exported: Forward, inputs: Sequence[torch.Tensor]) -> Parity:
    """Run both modules on ``inputs``, each uint8 (3, H, W), in batches of every size in BATCH_SIZES.

    Raises:
        ExportError: an output is not finite, or the shapes differ.
    """
    worst, agreed, samples = 0.0, 0, 0
    for size in BATCH_SIZES:
        repeats = math.ceil(max(size, len(inputs)) / len(inputs))
        queue = (list(inputs) * repeats)[: max(size, len(inputs))]
        for start in range(0, len(queue), size):
            batch = torch.stack(queue[start : start + size])
            want, got = eager(batch), exported(batch)
            _check_outputs(want, got, len(batch))
            worst = max(worst, float((want - got).abs().max()))
            agreed += int((want.argmax(1) == got.argmax(1)).sum())
            samples += len(batch)
    return Parity(samples, worst, agreed / samples)


def require(parity: Parity, gate: Gate) -> None:
    """Raise ExportError, saying by how much, where the export is further off than the gate allows."""
    problems = []
    if parity.max_abs_error > gate.max_abs_error:
        problems.append(f"the largest absolute error is {parity.max_abs_error:.2e}, above {gate.max_abs_error:.2e}")
    if parity.top1_agreement < gate.top1_agreement:
        problems.append(f"the top-1 agreement is {parity.top1_agreement:.4f}, below {gate.top1_agreement:.4f}")
    if problems:
        raise ExportError(
            f"the export does not answer like the eager module: {'; '.join(problems)}",
            tip="try export.method: script (or trace), or set export.gate in the spec if the difference is meant",
        )


def _check_outputs(want: torch.Tensor, got: torch.Tensor, batch: int) -> None:
    if want.shape != got.shape or want.shape[0] != batch:
        raise ExportError(
            f"for {batch} inputs the eager module gives {tuple(want.shape)} and the export {tuple(got.shape)}",
            tip="a batch size is baked into the graph: look for sizes taken from a tensor as Python numbers",
        )
    if not torch.isfinite(want).all():
        raise ExportError("the eager module gives values that are not finite", tip="are these the right weights?")
    if not torch.isfinite(got).all():
        raise ExportError("the export gives values that are not finite")
