"""Recipes for the classifiers of torchvision, with all that their weights' own record says."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torchvision import models

from marsmith.errors import ExportError
from marsmith.names import did_you_mean
from marsmith.recipe import ImagePreprocessing, Recipe

# These two are built otherwise with weights than without: the weights expect it.
_LIKE_PRETRAINED = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


def torchvision_recipe(name: str, weights: str | None = None) -> Recipe:
    """Return the recipe of a torchvision classifier.

    Args:
        name: as in ``torchvision.models.list_models()``.
        weights: which set of its weights, as ``IMAGENET1K_V1``; None: the best one.

    Raises:
        ExportError: no such classifier, or no such weights.
    """
    known = models.list_models(module=models)
    if name not in known:
        raise ExportError(
            f"torchvision has no classifier {name!r}{did_you_mean(name, known)}",
            tip='python -c "from torchvision import models; print(models.list_models(module=models))"',
        )
    chosen = _weights(name, weights)
    return Recipe(
        build=lambda: _built(name),
        hub_weights=lambda: _downloaded(chosen),
        preprocessing=_preprocessing(name, chosen.transforms()),
        labels=lambda: list(chosen.meta["categories"]),
    )


def _weights(name: str, wanted: str | None) -> Any:
    kinds = models.get_model_weights(name)
    if wanted is None:
        return kinds.DEFAULT
    known = [kind.name for kind in kinds]
    if wanted not in known:
        raise ExportError(
            f"{name} has no weights {wanted!r}{did_you_mean(wanted, known)}", tip=f"one of {', '.join(known)}"
        )
    return kinds[wanted]


def _built(name: str) -> torch.nn.Module:
    return cast("torch.nn.Module", models.get_model(name, weights=None, **_LIKE_PRETRAINED.get(name, {})))


def _downloaded(weights: Any) -> dict[str, torch.Tensor]:
    return dict(weights.get_state_dict(progress=True, check_hash=True))


def _preprocessing(name: str, preset: Any) -> ImagePreprocessing:
    interpolation = preset.interpolation.value
    if interpolation not in ("bilinear", "bicubic"):
        raise ExportError(f"{name} resizes with {interpolation}, and the handler bilinear or bicubic")
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return ImagePreprocessing(
        resize=math.floor(resize),
        crop=(crop, crop),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=interpolation,
    )
