"""Recipes for the classifiers of timm, from their ``pretrained_cfg``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from marsmith.errors import ExportError, MissingDependencyError
from marsmith.export.recipes.recipe import ImagePreprocessing, Recipe, imagenet_labels
from marsmith.names import did_you_mean


def timm_recipe(name: str) -> Recipe:
    """Return the recipe of a timm classifier.

    Args:
        name: name in ``timm.list_models()``, with or without a tag: ``mobilenetv3_small_050.lamb_in1k``.

    Raises:
        ExportError: the model does not exist, or its preprocessing is not resizing and cropping.
        MissingDependencyError: timm is not installed.
    """
    try:
        timm: Any = import_module("timm")
    except ImportError:
        raise MissingDependencyError("timm", extra="timm") from None
    if not timm.models.is_model(name):
        known = timm.list_models()
        raise ExportError(
            f"timm has no model {name!r}{did_you_mean(name.partition('.')[0], known)}",
            tip='python -c "import timm; print(timm.list_models())"',
        )
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    if config is None:
        raise ExportError(f"timm has no pretrained_cfg for {name!r}", tip="write a recipe: docs/reference/recipes.md")
    return Recipe(
        build=lambda: timm.create_model(name, pretrained=False),
        hub_weights=lambda: timm.create_model(name, pretrained=True).state_dict(),
        preprocessing=timm_preprocessing(name, config.to_dict()),
        labels=lambda: _labels(name, config),
        adapt_weights=lambda state: _adapted(name, state),
    )


def _adapted(name: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load a state dict with timm, using the filter of the model, as for one of its hub.

    Raises:
        RuntimeError: the state dict does not fit.
    """
    timm: Any = import_module("timm")
    overlay = {"state_dict": dict(state), "source": "", "custom_load": False}
    loaded: Mapping[str, Any] = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    return loaded


def timm_preprocessing(name: str, config: Mapping[str, Any]) -> ImagePreprocessing:
    """Do as ``timm.data.create_transform`` does for validation.

    Args:
        name: of the model.
        config: its ``pretrained_cfg``.

    Raises:
        ExportError: the handler cannot do the same.
    """
    data = import_module("timm.data").resolve_data_config({}, pretrained_cfg=dict(config), verbose=False)
    channels, height, width = data["input_size"]
    if channels != 3 or data["crop_mode"] != "center" or data["interpolation"] not in ("bilinear", "bicubic"):
        raise ExportError(
            f"{name} takes {channels} channels, crop {data['crop_mode']!r}, interpolation {data['interpolation']!r}; "
            "the handler gives 3, 'center', and bilinear or bicubic",
            tip="write a recipe file with the nearest preprocessing that you have validated: docs/reference/recipes.md",
        )
    if height != width:
        raise ExportError(f"{name} takes {height} x {width}; its resizing to two lengths is not what the handler does")
    return ImagePreprocessing(
        resize=math.floor(height / data["crop_pct"]),
        crop=(height, width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
    )


def _labels(name: str, config: Any) -> list[str]:
    data: Any = import_module("timm.data")
    if config.label_names:
        return [str(label) for label in config.label_names]
    subset = data.infer_imagenet_subset(config.to_dict())
    if subset is None:
        raise ExportError(f"timm has no names for the {config.num_classes} classes of {name}")
    if subset == "imagenet-1k":
        return imagenet_labels()
    return [str(label) for label in data.ImageNetInfo(subset).label_descriptions()]
