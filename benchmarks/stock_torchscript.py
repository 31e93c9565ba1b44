"""A model as people serialize it for TorchServe's stock image_classifier handler."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

import forms
from marsmith.export.recipes.recipe import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing, load_image_recipe
from marsmith.export.recipes.weights import apply_weights, load_weights


class _Renormalised(torch.nn.Module):
    """Takes what the stock handler makes of a photo, and gives the classifier what it was trained on."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, classifier: torch.nn.Module, wanted: ImagePreprocessing) -> None:
        super().__init__()
        self.classifier = classifier
        stock_mean, stock_std, mean, std = (
            torch.tensor(values).reshape(1, 3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD, wanted.mean, wanted.std)
        )
        self.register_buffer("scale", stock_std / std)
        self.register_buffer("shift", (stock_mean - mean) / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map normalised pixels (N, 3, H, W) to logits (N, classes)."""
        logits: torch.Tensor = self.classifier(pixels * self.scale + self.shift)
        return logits


def for_stock_handler(classifier: torch.nn.Module, wanted: ImagePreprocessing) -> torch.nn.Module:
    """Return the classifier behind what turns the stock handler's normalisation into its own; itself where equal."""
    if (wanted.mean, wanted.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return classifier
    return _Renormalised(classifier, wanted)


def write_stock_torchscript(model: str, weights: str, path: Path) -> None:
    """Trace the eager module as people do for the stock handler: normalised floats in, logits out, not frozen."""
    recipe = load_image_recipe(forms.REPOSITORY / "export" / f"{model}.py")
    torch.manual_seed(0)
    classifier = recipe.build()
    apply_weights(classifier, load_weights(weights, recipe, forms.REPOSITORY))
    module = for_stock_handler(classifier, recipe.preprocessing).eval()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.rand(1, 3, *recipe.preprocessing.crop), check_trace=False), path)
