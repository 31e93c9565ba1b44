"""The gate: compares an export with the eager float32 module on real inputs. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from marsmith.config.export_spec import GateLimits
from marsmith.error_text import useful_line
from marsmith.errors import ExportError

# One, odd numbers, and a full batch: together they detect a batch size that is fixed in the graph.
BATCH_SIZES = (1, 3, 8)
# All samples are compared in batches of the largest size, and this number in each of the others.
_SAMPLES_AT_OTHER_SIZES = 12

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Parity:
    """Comparison of two modules on the same inputs.

    Attributes:
        samples: number of compared outputs, over all batch sizes.
        max_abs_error: largest absolute difference of any output value.
        max_relative_error: largest absolute difference in one sample, divided by the sample's largest output.
        cosine: smallest cosine between the outputs for one sample.
        top1_agreement: share of the samples with the same largest output, 0 to 1.
        top5_agreement: share of the five largest outputs that are the same, over all samples, 0 to 1.
        accuracy: share of the labelled samples that the export classifies correctly, 0 to 1; None without labels.
        eager_accuracy: the same for the eager module.
    """

    samples: int
    max_abs_error: float
    max_relative_error: float = 0.0
    cosine: float = 1.0
    top1_agreement: float = 1.0
    top5_agreement: float = 1.0
    accuracy: float | None = None
    eager_accuracy: float | None = None

    def figures(self) -> dict[str, Any]:
        """Return the measured figures, rounded to meaningful digits."""
        return {key: round_figure(value) for key, value in asdict(self).items() if value is not None}

    def record(self, limits: GateLimits) -> dict[str, Any]:
        """Return the figures for an archive's export.json if there is no lock.

        Errors are given as a power of ten that exceeds them, because their digits depend on the processor, and an
        archive must not.
        """
        return {
            "against": "the eager float32 module",
            "samples": self.samples,
            "batchSizes": list(BATCH_SIZES),
            "maxAbsErrorBelow": _bound(self.max_abs_error),
            "maxRelativeErrorBelow": _bound(self.max_relative_error),
            "top1Agreement": self.top1_agreement,
            "limits": limits_record(limits),
        }


def limits_record(limits: GateLimits) -> dict[str, float]:
    """Return the limits that are set, with the names of export.json."""
    return {_camel(key): value for key, value in limits.model_dump(exclude_none=True).items()}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(map(str.title, rest))


def round_figure(value: float) -> float:
    """Round to four significant digits."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _bound(error: float) -> float:
    return float(f"{10.0 ** math.ceil(math.log10(error)):.0e}") if error else 0.0


def eager_outputs(eager: Forward, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Run the eager module on ``inputs``, each uint8 (3, H, W); return (len(inputs), classes).

    Raises:
        ExportError: the module fails, or an output is not finite.
    """
    size = max(BATCH_SIZES)
    try:
        outputs = torch.cat([eager(torch.stack(list(inputs[i : i + size]))) for i in range(0, len(inputs), size)])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ExportError(f"the eager module fails on the inputs of the recipe: {useful_line(error)}") from error
    if outputs.shape[0] != len(inputs):
        raise ExportError(
            f"for {len(inputs)} inputs the eager module gives {tuple(outputs.shape)}: axis 0 is not the batch"
        )
    if not torch.isfinite(outputs).all():
        raise ExportError("the eager module gives values that are not finite", tip="are these the right weights?")
    return outputs


def compare(
    want: torch.Tensor, exported: Forward, inputs: Sequence[torch.Tensor], labels: Sequence[int | None] = ()
) -> Parity:
    """Compare the outputs of an export with those of the eager module, in batches of every size in BATCH_SIZES.

    Args:
        want: the eager module's outputs, (len(inputs), classes), float32.
        exported: the export.
        inputs: uint8 tensors (3, H, W).
        labels: correct class of each input, None if unknown; empty if all are unknown.

    Raises:
        ExportError: an output is not finite, or the shapes differ.
    """
    rows: list[torch.Tensor] = []
    picked: list[int] = []
    for size in BATCH_SIZES:
        for indices in _batches(len(inputs), size):
            got = exported(torch.stack([inputs[i] for i in indices])).to("cpu", torch.float32)
            _check_outputs(want[indices], got)
            rows.append(got)
            picked += indices
    right = [labels[i] for i in picked] if labels else []
    return _figures(want[picked], torch.cat(rows), right)


def _batches(count: int, size: int) -> Iterator[list[int]]:
    """Yield indices of full batches: all inputs at the largest size, some at the others, repeated if necessary."""
    wanted = max(size, count if size == max(BATCH_SIZES) else min(count, _SAMPLES_AT_OTHER_SIZES))
    for start in range(0, wanted, size):
        yield [i % count for i in range(start, start + size)]


def _figures(want: torch.Tensor, got: torch.Tensor, labels: Sequence[int | None]) -> Parity:
    error = (want - got).abs().amax(1)
    top = min(5, want.shape[1])
    wanted, given = want.topk(top, 1).indices, got.topk(top, 1).indices
    kept = (wanted[:, :, None] == given[:, None, :]).any(2).float().mean()
    known = [i for i, label in enumerate(labels) if label is not None]
    truth = torch.tensor([labels[i] for i in known])
    return Parity(
        samples=len(want),
        max_abs_error=float(error.max()),
        max_relative_error=float((error / want.abs().amax(1).clamp_min(1e-12)).max()),
        cosine=min(1.0, float(torch.nn.functional.cosine_similarity(want.double(), got.double(), 1).min())),
        top1_agreement=float((want.argmax(1) == got.argmax(1)).double().mean()),
        top5_agreement=float(kept),
        accuracy=float((got.argmax(1)[known] == truth).double().mean()) if known else None,
        eager_accuracy=float((want.argmax(1)[known] == truth).double().mean()) if known else None,
    )


def problems(parity: Parity, limits: GateLimits) -> list[str]:
    """Return the limits that an export exceeds, and by how much; empty if there are none."""
    drop = None if parity.accuracy is None or parity.eager_accuracy is None else parity.eager_accuracy - parity.accuracy
    above = [
        ("largest absolute error", parity.max_abs_error, limits.max_abs_error, ".2e"),
        ("largest relative error", parity.max_relative_error, limits.max_relative_error, ".2e"),
        ("accuracy lost", drop, limits.max_accuracy_drop, ".4f"),
    ]
    below = [
        ("smallest cosine", parity.cosine, limits.cosine, ".5f"),
        ("top-1 agreement", parity.top1_agreement, limits.top1_agreement, ".4f"),
        ("top-5 agreement", parity.top5_agreement, limits.top5_agreement, ".4f"),
    ]
    found = [
        f"the {name} is {value:{style}}, above {limit:{style}} (by {value - limit:{style}})"
        for name, value, limit, style in above
        if value is not None and limit is not None and value > limit
    ]
    return found + [
        f"the {name} is {value:{style}}, below {limit:{style}} (by {limit - value:{style}})"
        for name, value, limit, style in below
        if limit is not None and value < limit
    ]


def _check_outputs(want: torch.Tensor, got: torch.Tensor) -> None:
    if want.shape != got.shape:
        raise ExportError(
            f"for {len(want)} inputs the eager module gives {tuple(want.shape)} and the export {tuple(got.shape)}",
            tip="a batch size is baked into the graph: look for sizes taken from a tensor as Python numbers",
        )
    if not torch.isfinite(got).all():
        raise ExportError("the export gives values that are not finite", tip="try another precision, or float32")
