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
from marsmith.export.int8.plan import Int8Plan

Forward = Callable[[torch.Tensor], torch.Tensor]
BATCH_SIZE = 8


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


@dataclass(frozen=True)
class ExpectedAgreement:
    """Top-1 agreement that images like these are to be expected to keep, told from margins and noise.

    Flips are few, and where the first two classes nearly tie they are chance: on a hundred images their count says
    little, and does not follow precision. The noise between the first two classes can be told from all images, and the
    chance that it turns an image's margin around from the margin: their mean moves smoothly with the noise.

    Attributes:
        images: uint8 (3, H, W).
        best: the eager module's first and second class of each (N, 2).
        margins: by how many nats the first is above the second (N,).
    """

    images: tuple[torch.Tensor, ...]
    best: torch.Tensor
    margins: torch.Tensor

    @classmethod
    def of(cls, graph: Forward, images: Sequence[torch.Tensor]) -> ExpectedAgreement:
        """Run the eager module on ``images``.

        Raises:
            ExportError: there are no images, or the module gives one class only.
        """
        if not images:
            raise ExportError("int8 needs images to choose layers on", tip="name some in the spec: export.calibration")
        first = centred_logits(graph, images)
        if first.shape[1] < 2:
            raise ExportError("int8 is chosen by which class comes first, and the module has one only")
        top = first.topk(2, dim=1)
        return cls(tuple(images), top.indices, top.values[:, 0] - top.values[:, 1])

    def __call__(self, forward: Forward) -> float:
        """Return the expected agreement, 0 to 1, of ``forward``: uint8 (N, 3, H, W) to probabilities (N, classes)."""
        logits = centred_logits(forward, self.images)
        if not torch.isfinite(logits).all():
            return 0.0
        pairs = logits.gather(1, self.best)
        errors = pairs[:, 0] - pairs[:, 1] - self.margins
        # Any image's noise may hit any other, with either sign: so a few with much of it do not count for all.
        chances = (errors.abs() >= self.margins[:, None]).double().mean(1) / 2
        # A third class may come first: flips that chance does not explain count as they are.
        flips = int((logits.argmax(1) != self.best[:, 0]).sum())
        explained = float(chances.sum() + 2 * (chances * (1 - chances)).sum().sqrt())
        return min(float(1 - chances.mean()), 1 - (flips - explained) / len(logits))


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


def restore_float_layers(
    plan: Int8Plan,
    ranked: Callable[[], Sequence[tuple[str, ...]]],
    agreement: Callable[[Int8Plan], float],
    wanted: float,
    on_step: Callable[[str], None],
) -> Int8Plan:
    """Leave the worst layers in float32, as few as will do for ``wanted``.

    Nothing given back is tried first, and everything that may be second; between them the number is halved in.

    Args:
        plan: where to start from.
        ranked: gives runs of layers, the one to give back first before the others; they may overlap. Is not asked
            where all layers can be int8.
        agreement: of the int8 model of a plan with the eager module, 0 to 1.
        wanted: agreement to reach.
        on_step: is told each step.

    Raises:
        ExportError: as long as any layer is int8 it does not hold.
    """
    seen: list[float] = []

    def holds(float_layers: tuple[str, ...], share: str) -> bool:
        seen.append(agreement(replace(plan, float_layers=float_layers)))
        on_step(f"int8 with {share} in float32: agreement {seen[-1]:.4f}, wanted {wanted:.4f}")
        return seen[-1] >= wanted

    if holds((), "no layer"):
        return plan
    on_step("int8: measuring what noise each layer adds")
    steps = _steps(ranked())
    # With all of them in float32 it would be int8 no more.
    low, high = 0, max(len(steps) - 2, 0)
    shares = [f"{len(step)} of {len(steps[-1])} layers" for step in steps]
    if high == 0 or not holds(steps[high], shares[high]):
        raise ExportError(
            f"int8 keeps {max(seen):.4f} of the answers at best, below {wanted:.4f}",
            tip="take bfloat16 or float32, or lower the gate if that is meant",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(steps[middle], shares[middle]) else (middle, high)
    return replace(plan, float_layers=steps[high])


def _steps(ranked: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the sets of layers to leave in float32, from none to all, each larger than the one before."""
    steps: list[tuple[str, ...]] = [()]
    for run in ranked:
        grown = tuple(sorted({*steps[-1], *run}))
        if grown != steps[-1]:
            steps.append(grown)
    return steps
