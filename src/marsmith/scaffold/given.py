"""Models from a file of the user: TorchScript, or a state dict without its module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.config.source_names import weights_file
from marsmith.errors import ExportError, UsageError
from marsmith.scaffold.model import NewModel, image_spec
from marsmith.scaffold.packaged import require_torch
from marsmith.scaffold.sources import ModelSource, model_name
from marsmith.scaffold.template import RECIPES, NewFile

if TYPE_CHECKING:
    import torch

# Number of tensors of a state dict that a recipe lists from its beginning, and from its end.
_SHOWN = 4
_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_INDENT = " " * 4


def given_file(path: Path, source: ModelSource) -> Path:
    """Return the file of a source; raises UsageError if it is not a file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--from {source}: {path} {what}", tip="name a file, from the folder that you are in")
    return path


def torchscript_model(source: ModelSource) -> NewModel:
    """Return an image classifier in TorchScript, with a recipe for its preprocessing.

    Raises:
        UsageError: there is no such file.
        ExportError: it is not TorchScript, or not a classifier of photos.
    """
    path = given_file(Path(source.name), source)
    require_torch()
    name = model_name(path.stem)
    recipe, weights = recipe_place(name), f"{RECIPES}/{name}.pt"
    text = _TORCHSCRIPT.format(file=Path(weights).name, name=name, output=_output_of(path, source))
    comment = "They lie in the TorchScript file that the recipe names."
    spec = image_spec(name, f"{path.name}, as TorchScript", recipe, "recipe", comment)
    notes = (f"{recipe} says how a photo is prepared and what the classes are called: look whether it is right",)
    return NewModel(name, (spec.file(), NewFile(recipe, text), NewFile(weights, path)), notes=notes)


def checkpoint_model(source: ModelSource) -> NewModel:
    """Return a state dict, with a recipe in which the user must build its module.

    Raises:
        UsageError: there is no such file.
        ExportError: it is not a state dict, or loading it could run code.
    """
    named = weights_file(source.name, Path())
    path = given_file(named.path if named else Path(source.name), source)
    entry = named.entry if named else None
    require_torch()
    from marsmith.export.recipes.checkpoint import read_checkpoint

    state = read_checkpoint(path, entry=entry).state
    name = model_name(path.stem)
    suffix = path.suffix if path.suffix in _SUFFIXES else ".pth"
    recipe, weights = recipe_place(name), f"{RECIPES}/{name}{suffix}"
    # The names are arbitrary text, and become part of Python source.
    lines = [f"#   {ascii(key)[1:-1]}  {tuple(tensor.shape)}" for key, tensor in state.items()]
    if len(lines) > 2 * _SHOWN:
        lines[_SHOWN:-_SHOWN] = [f"#   ... {len(lines) - 2 * _SHOWN} more ..."]
    shown = "\n".join(f"{_INDENT}{line}" for line in lines)
    text = _CHECKPOINT.format(file=Path(weights).name, name=name, recipe=recipe, shown=shown, classes=_classes(state))
    comment = f"Copied from {path.name}."
    spec = image_spec(
        name, f"from the checkpoint {path.name}", recipe, f"{weights}{f'#{entry}' if entry else ''}", comment
    )
    notes = (
        f"a state dict does not say which module it belongs to: fill in build() in {recipe}, before anything else",
    )
    return NewModel(name, (spec.file(), NewFile(recipe, text), NewFile(weights, path)), notes=notes)


def recipe_place(name: str) -> str:
    """Return the path of a model's recipe."""
    return f"{RECIPES}/{name}.py"


def _output_of(path: Path, source: ModelSource) -> str:
    """Return whether a TorchScript file gives logits or probabilities, from its outputs for two generated photos.

    Raises:
        ExportError: it does not take photos, or gives something else.
    """
    import torch

    from marsmith.error_text import useful_line
    from marsmith.export.recipes.torchscript import load_module

    module = load_module(path)
    photos = torch.stack([torch.zeros(3, 224, 224), torch.linspace(-2, 2, 3 * 224 * 224).reshape(3, 224, 224)])
    tip = (
        "a file that takes other tensors: marsmith new in another folder, then a TensorRecipe with torchscript=,"
        " and handlers/tensor_handler.py: docs/reference/recipes.md; or export the model to ONNX: --from onnx:FILE"
    )
    try:
        with torch.inference_mode():
            outputs = module(photos)
    except Exception as error:  # the TorchScript interpreter raises many types
        raise ExportError(
            f"--from {source}: it does not take photos (N, 3, 224, 224): {useful_line(error)}", tip=tip
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or len(outputs) != len(photos):
        shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ExportError(
            f"--from {source}: for 2 photos it gives {shape}, and a classifier gives (2, classes)", tip=tip
        )
    sums = outputs.float().sum(dim=1)
    return "probabilities" if bool((outputs >= 0).all() and ((sums - 1).abs() < 1e-3).all()) else "logits"


def _classes(state: Mapping[str, torch.Tensor]) -> int:
    """Return the probable number of classes: the outputs of the last layer."""
    return next((len(tensor) for tensor in reversed(list(state.values())) if tensor.ndim in (1, 2)), 1000)


_TORCHSCRIPT = '''"""The TorchScript file {file}, which every export is compared with.

Try: marsmith export {name}
"""

from pathlib import Path

from marsmith.export import Expects, ImagePreprocessing
from marsmith.export.recipes.torchscript import torchscript_recipe

RECIPE = torchscript_recipe(
    Path(__file__).with_name("{file}"),
    # A photo becomes 224 x 224 pixels, normalised with ImageNet's mean and deviation: change what yours did otherwise.
    preprocessing=ImagePreprocessing(resize=256, crop=(224, 224)),
    # pixels="unit" or "uint8" if the file normalises itself.
    expects=Expects(pixels="normalised", output="{output}"),
    # None: their numbers. Else a list such as ["cat", "dog"], in the order of the outputs.
    labels=None,
)
'''

_CHECKPOINT = '''"""The module that {file} was saved from.

Try: marsmith export {name}
"""

import torch

from marsmith.export import ImagePreprocessing, Recipe


def build() -> torch.nn.Module:
    """Return the module, with any weights: those of {file} are loaded into it."""
    # FILL IN: a state dict does not say which module it belongs to. This one has
{shown}
    # The module's code may lie beside this file: from my_network import MyNetwork; return MyNetwork(classes={classes})
    raise NotImplementedError("fill it in, in {recipe}: which module was {file} saved from?")


RECIPE = Recipe(
    build=build,
    # A photo becomes 224 x 224 pixels, normalised with ImageNet's mean and deviation: change what yours did otherwise.
    preprocessing=ImagePreprocessing(resize=256, crop=(224, 224)),
    # In the order of the outputs. For a module that is not an image classifier, take a TensorRecipe instead.
    labels=[str(number) for number in range({classes})],
)
'''
