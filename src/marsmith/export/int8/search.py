"""Search for a plan: the settings with the least noise, then the layers that must stay in float32.

Noise is the error of int8 in the logarithms of the probabilities, relative to their own variation, in decibels.
Agreement depends on it. Noise can be measured on a few dozen images, for which agreement still changes by whole images.
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
    """Compares int8 with float32 on images that were not used for calibration.

    Attributes:
        images: uint8 (3, H, W).
        logits: centred logits of the eager module (N, classes).
    """

    images: tuple[torch.Tensor, ...]
    logits: torch.Tensor

    @classmethod
    def of(cls, graph: Forward, images: Sequence[torch.Tensor]) -> Judge:
        """Run the eager module on ``images``."""
        return cls(tuple(images), centred_logits(graph, images))

    def signal_to_noise_db(self, forward: Forward) -> float:
        """Return the signal-to-noise ratio of the outputs, in decibels; higher is better."""
        noise = centred_logits(forward, self.images) - self.logits
        if not torch.isfinite(noise).all():
            return -math.inf
        ratio = self.logits.square().sum() / noise.square().sum().clamp_min(1e-12)
        return 10 * math.log10(max(float(ratio), 1e-12))


@dataclass(frozen=True)
class ExpectedAgreement:
    """Expected top-1 agreement on similar images, estimated from margins and noise.

    Changes of the best class are rare, and random if the first two classes are nearly equal. On a hundred images their
    number says little about a precision. The noise between the first two classes can be estimated from all images, and
    with the margin it gives the probability that the best class changes. The mean of these probabilities is a smooth
    function of the noise.

    Attributes:
        images: uint8 (3, H, W).
        best: first and second class of the eager module for each image (N, 2).
        margins: difference of their logits, in nats (N,).
    """

    images: tuple[torch.Tensor, ...]
    best: torch.Tensor
    margins: torch.Tensor

    @classmethod
    def of(cls, graph: Forward, images: Sequence[torch.Tensor]) -> ExpectedAgreement:
        """Run the eager module on ``images``.

        Raises:
            ExportError: there are no images, or the module has only one class.
        """
        if not images:
            raise ExportError("int8 needs images to choose layers on", tip="name some in the spec: export.calibration")
        first = centred_logits(graph, images)
        if first.shape[1] < 2:
            raise ExportError("int8 is evaluated by the best class, and the module has only one class")
        top = first.topk(2, dim=1)
        return cls(tuple(images), top.indices, top.values[:, 0] - top.values[:, 1])

    def __call__(self, forward: Forward) -> float:
        """Return the expected agreement, 0 to 1, of ``forward``: uint8 (N, 3, H, W) to probabilities (N, classes)."""
        logits = centred_logits(forward, self.images)
        if not torch.isfinite(logits).all():
            return 0.0
        pairs = logits.gather(1, self.best)
        errors = pairs[:, 0] - pairs[:, 1] - self.margins
        # The noise of any image may occur at any other, with either sign, so a few noisy images do not dominate.
        chances = (errors.abs() >= self.margins[:, None]).double().mean(1) / 2
        # A third class may become the best: changes beyond the estimate count as they are.
        flips = int((logits.argmax(1) != self.best[:, 0]).sum())
        explained = float(chances.sum() + 2 * (chances * (1 - chances)).sum().sqrt())
        return min(float(1 - chances.mean()), 1 - (flips - explained) / len(logits))


def centred_logits(forward: Forward, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logarithms of the probabilities minus each row's mean: the logits up to a constant."""
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
    """Return the plan with the least noise; of equal ones the first."""
    best: tuple[float, Int8Plan] | None = None
    for plan in tried:
        figure = measure(plan)
        on_step(f"int8 with {describe(plan)}: signal-to-noise ratio {figure:.1f} dB")
        # Half a decibel is the variation between sets of images.
        if best is None or figure > best[0] + 0.1:
            best = (figure, plan)
    if best is None:
        raise ExportError("no setting of int8 was tried")
    return best[1]


def describe(plan: Int8Plan) -> str:
    """Return a short description of a plan."""
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
    """Leave the noisiest layers in float32, as few as necessary for ``wanted``.

    No layers are tried first, then all layers that may be second, and then the number is bisected.

    Args:
        plan: initial plan.
        ranked: returns runs of layers, best candidates for float32 first; they may overlap. It is not called if all
            layers can be int8.
        agreement: agreement of the int8 model of a plan with the eager module, 0 to 1.
        wanted: agreement to reach, 0 to 1.
        on_step: called with each step.

    Raises:
        ExportError: no plan with at least one int8 layer reaches ``wanted``.
    """
    seen: list[float] = []

    def holds(float_layers: tuple[str, ...], share: str) -> bool:
        seen.append(agreement(replace(plan, float_layers=float_layers)))
        on_step(f"int8 with {share} in float32: agreement {seen[-1]:.4f}, wanted {wanted:.4f}")
        return seen[-1] >= wanted

    if holds((), "no layer"):
        return plan
    on_step("int8: measuring the noise of each layer")
    steps = _steps(ranked())
    # With all layers in float32 it would not be int8.
    low, high = 0, max(len(steps) - 2, 0)
    shares = [f"{len(step)} of {len(steps[-1])} layers" for step in steps]
    if high == 0 or not holds(steps[high], shares[high]):
        raise ExportError(
            f"int8 keeps {max(seen):.4f} of the answers at best, below {wanted:.4f}",
            tip="take bfloat16 or float32, or lower the gate if this is intended",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(steps[middle], shares[middle]) else (middle, high)
    return replace(plan, float_layers=steps[high])


def _steps(ranked: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return increasing sets of layers to leave in float32, from none to all."""
    steps: list[tuple[str, ...]] = [()]
    for run in ranked:
        grown = tuple(sorted({*steps[-1], *run}))
        if grown != steps[-1]:
            steps.append(grown)
    return steps
