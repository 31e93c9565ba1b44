"""Recipes for the classifiers of torchvision, from the metadata of their weights."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torchvision import models

from marsmith.errors import ExportError
from marsmith.export.recipes.recipe import ImagePreprocessing, Recipe
from marsmith.names import did_you_mean

# These two are built differently with weights than without, and the weights need that. Their auxiliary heads are only
# for training.
_LIKE_PRETRAINED = {
    "googlenet": {"transform_input": True, "init_weights": False, "aux_logits": False},
    "inception_v3": {"transform_input": True, "init_weights": False, "aux_logits": False},
}
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def torchvision_recipe(name: str, weights: str | None = None) -> Recipe:
    """Return the recipe of a torchvision classifier.

    Args:
        name: name in ``torchvision.models.list_models()``.
        weights: name of the weights, such as ``IMAGENET1K_V1``; None: the best ones.

    Raises:
        ExportError: the classifier or the weights do not exist.
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
        adapt_weights=lambda state: _adapted(name, state),
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


def _downloaded(weights: Any) -> Mapping[str, torch.Tensor]:
    # Not as a dict: torch keeps the versions of the modules beside the names, and mnasnet does not load without them.
    state: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    return state


class _File:
    """Stands in for a set of weights, for torchvision's loader, which reads the state dict from it."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def get_state_dict(self, *_: Any, **__: Any) -> Mapping[str, Any]:
        return copy.copy(self.state)


class _Names:
    """Stands in for a module, for torchvision's loader, which loads the renamed state dict into it."""

    def __init__(self) -> None:
        self.state: Mapping[str, Any] = {}

    def load_state_dict(self, state: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self.state = state


def _adapted(name: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rename the keys of a hub's state dict like torchvision's own loader, without auxiliary heads."""
    load = getattr(sys.modules[models.get_model_builder(name).__module__], "_load_state_dict", None)
    if load is not None:
        names = _Names()
        load(names, _File(state), False)
        state = names.state
    kept = copy.copy(state)
    for key in [key for key in kept if key.startswith(_AUXILIARY.get(name, ()))]:
        del kept[key]  # type: ignore[attr-defined]
    return kept


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
