"""Finds how to quantise a model: the settings with the least noise, then the layers that must stay in float32.

Noise is what int8 adds to the logarithms of the probabilities, as a share of their own variation, in decibels. It is
what agreement follows, and can be told apart on a few dozen images, where agreement still jumps by whole images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from marsmith.errors import ExportError
from marsmith.int8_plan import Int8Plan

Forward = Callable[[torch.Tensor], torch.Tensor]
BATCH_SIZE = 8
# How many runs of layers are given back at most in one step, as a share of those given back so far.
_GROWTH = 0.35


@dataclass(frozen=True)
class Judge:
    """Measures int8 forwards against the float32 one on images that calibration has not seen.

    Attributes:
        images: uint8 (3, H, W).
        logits: of the eager module, centred (N, classes).
    """

    images: tuple[torch.Tensor, ...]
    logits: torch.Tensor

    @classmethod
    def of(cls, graph: Forward, images: Sequence[torch.Tensor]) -> Judge:
        """Run the eager module on ``images``."""
        return cls(tuple(images), centred_logits(graph, images))

    def signal_to_noise_db(self, forward: Forward) -> float:
        """Return how far the outputs stand above what int8 has added, in decibels; higher is better."""
        noise = centred_logits(forward, self.images) - self.logits
        if not torch.isfinite(noise).all():
            return -math.inf
        ratio = self.logits.square().sum() / noise.square().sum().clamp_min(1e-12)
        return 10 * math.log10(max(float(ratio), 1e-12))


def centred_logits(forward: Forward, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return logarithms of the probabilities, less each row's mean: the logits, whatever the softmax shifted."""
    with torch.inference_mode():
        parts = [
            forward(torch.stack(list(images[start : start + BATCH_SIZE]))).double().clamp_min(1e-9).log()
            for start in range(0, len(images), BATCH_SIZE)
        ]
    logits = torch.cat(parts)
    return logits - logits.mean(dim=1, keepdim=True)


def best_settings(
    tried: Iterable[Int8Plan], measure: Callable[[Int8Plan], float], on_step: Callable[[str], None]
) -> Int8Plan:
    """Return the plan with the least noise; of equals the first."""
    best: tuple[float, Int8Plan] | None = None
    for plan in tried:
        figure = measure(plan)
        on_step(f"int8 with {describe(plan)}: {figure:.1f} dB above the noise")
        # Half a decibel is what another set of images changes by itself.
        if best is None or figure > best[0] + 0.1:
            best = (figure, plan)
    if best is None:
        raise ExportError("no setting of int8 was tried")
    return best[1]


def describe(plan: Int8Plan) -> str:
    """Return a plan in a few words."""
    words = [f"ranges by {plan.ranges}" + (f" {plan.percentile:g}" if plan.ranges == "percentile" else "")]
    words += ["compensated rounding"] * (plan.rounding == "compensated")
    words += ["corrected biases"] * plan.correct_bias
    words += [f"{len(plan.float_layers)} layers in float32"] * bool(plan.float_layers)
    return ", ".join(words)


def give_back(
    plan: Int8Plan,
    ranked: Sequence[tuple[str, ...]],
    agreement: Callable[[Int8Plan], float],
    wanted: float,
    on_step: Callable[[str], None],
) -> Int8Plan:
    """Leave the worst layers in float32, more and more, until ``wanted`` holds; then as few as will do.

    Args:
        plan: where to start from.
        ranked: runs of layers, the one to give back first before the others; they may overlap.
        agreement: of the int8 model of a plan with the eager module, 0 to 1.
        wanted: agreement to reach.
        on_step: is told each step.

    Raises:
        ExportError: as long as any layer is int8 it does not hold.
    """
    steps = _steps(ranked)
    seen: dict[int, float] = {}

    def holds(count: int) -> bool:
        seen[count] = agreement(replace(plan, float_layers=steps[count]))
        share = f"{len(steps[count])} of {len(steps[-1])} layers in float32"
        on_step(f"int8 with {share}: agreement {seen[count]:.4f}, wanted {wanted:.4f}")
        return seen[count] >= wanted

    low, high, last = -1, 0, max(len(steps) - 2, 0)
    while not holds(high):
        if high >= last:
            raise ExportError(
                f"int8 keeps {max(seen.values()):.4f} of the answers at best, below {wanted:.4f}",
                tip="take bfloat16 or float32, or lower the gate if that is meant",
            )
        low, high = high, min(max(high + 1, math.ceil(high * (1 + _GROWTH))), last)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return replace(plan, float_layers=steps[high])


def _steps(ranked: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the sets of layers to leave in float32, from none to all, each larger than the one before."""
    steps: list[tuple[str, ...]] = [()]
    for run in ranked:
        grown = tuple(sorted({*steps[-1], *run}))
        if grown != steps[-1]:
            steps.append(grown)
    return steps
