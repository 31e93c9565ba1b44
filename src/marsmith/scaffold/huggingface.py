"""Models from a folder of the Hugging Face hub: image classifiers of timm or of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pprint import pformat
from typing import Any

from marsmith.errors import ExportError, MissingDependencyError, UsageError
from marsmith.export.recipes.recipe import ImagePreprocessing
from marsmith.json_reader import read_json
from marsmith.names import did_you_mean
from marsmith.packages import installed_version
from marsmith.scaffold.given import recipe_place
from marsmith.scaffold.model import NewModel, image_spec
from marsmith.scaffold.packaged import require_torch
from marsmith.scaffold.sources import ModelSource, model_name
from marsmith.scaffold.template import RECIPES, NewFile

_CONFIG, _WEIGHTS, _PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_CLASSIFIER = "ForImageClassification"
# PIL's numbers of the two interpolations of the handler.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_OTHERWISE = (
    "any other model: export it to ONNX with one input and one output, and take --from onnx:FILE; or take "
    "--from checkpoint:FOLDER/model.safetensors, and write its recipe"
)


def huggingface_model(source: ModelSource) -> NewModel:
    """Return an image classifier from a folder with config.json and model.safetensors.

    Raises:
        UsageError: there is no such folder.
        ExportError: a file is missing or damaged, or no supported package has the architecture.
        MissingDependencyError: the package of the architecture is not installed.
    """
    folder = Path(source.name)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise UsageError(
            f"--from {source}: {folder} {what}",
            tip="name a folder on this machine: hf download NAME --local-dir FOLDER",
        )
    config = _json(folder / _CONFIG, source)
    if not (folder / _WEIGHTS).is_file():
        raise ExportError(f"--from {source}: there is no {_WEIGHTS} in it", tip=_without_weights(folder))
    require_torch()
    name = model_name(folder.resolve().name)
    is_timm = isinstance(config.get("architecture"), str)
    text = _timm_recipe(name, config, source) if is_timm else _transformers_recipe(name, config, folder, source)
    recipe, weights = recipe_place(name), f"{RECIPES}/{name}.safetensors"
    comment = f"{weights}, which the recipe names."
    spec = image_spec(name, f"{folder.resolve().name}, of the Hugging Face hub", recipe, "recipe", comment)
    files = (spec.file(), NewFile(recipe, text), NewFile(weights, folder / _WEIGHTS))
    notes = (f"{recipe} says how a photo is prepared: look whether it is right",)
    if is_timm:
        return NewModel(name, files, ("timm",), notes)
    return NewModel(name, files, notes=notes, packages=("transformers",))


def _json(path: Path, source: ModelSource) -> Mapping[str, Any]:
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"--from {source}: there is no {path.name} in it", tip=_OTHERWISE) from None
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {error}", tip="download it again") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path} is not a JSON object", tip="download it again")
    return content


def _without_weights(folder: Path) -> str:
    if (folder / f"{_WEIGHTS}.index.json").is_file():
        return (
            f"its weights lie in several files: write one with model.save_pretrained({folder}, max_shard_size='100GB')"
        )
    return f"write it with safe_serialization: model.save_pretrained({str(folder)!r})"


def _timm_recipe(name: str, config: Mapping[str, Any], source: ModelSource) -> str:
    from marsmith.export.recipes.timm import timm_preprocessing

    try:
        timm: Any = import_module("timm")
    except ImportError:
        raise MissingDependencyError("timm", extra="timm") from None
    architecture = str(config["architecture"])
    if not timm.models.is_model(architecture):
        known = did_you_mean(architecture, timm.list_models())
        raise ExportError(f"--from {source}: timm has no model {architecture!r}{known}", tip="pip install -U timm")
    pretrained = config.get("pretrained_cfg") or {}
    classes = int(config.get("num_classes") or pretrained.get("num_classes") or 1000)
    names, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    labels = [str(descriptions.get(one, one)) for one in names] if names else None
    return _TIMM.format(
        name=name,
        architecture=architecture,
        weights=f"{name}.safetensors",
        build=f"{architecture!r}, num_classes={classes}, **{dict(config.get('model_args') or {})!r}",
        preprocessing=_preprocessing_text(timm_preprocessing(architecture, pretrained)),
        labels=_labels_text(labels, classes),
    )


def _transformers_recipe(name: str, config: Mapping[str, Any], folder: Path, source: ModelSource) -> str:
    architecture = next(iter(config.get("architectures") or ()), None)
    if not isinstance(architecture, str) or not _is_classifier(architecture):
        raise ExportError(
            f"--from {source}: its architecture is {architecture!r}; image classifiers of timm, and of transformers "
            f"(...{_CLASSIFIER}), can be taken",
            tip=_OTHERWISE,
        )
    if installed_version("transformers") is None:
        raise ExportError(f"--from {source}: transformers is not installed", tip="pip install transformers")
    known = import_module("transformers").CONFIG_MAPPING
    kind = str(config.get("model_type"))
    if kind not in known:
        hint = did_you_mean(kind, list(known.keys()))
        raise ExportError(f"--from {source}: transformers has no {kind!r}{hint}", tip="pip install -U transformers")
    labels = config.get("id2label") or {}
    ordered = [str(labels[key]) for key in sorted(labels, key=int)] if labels else ["LABEL_0", "LABEL_1"]
    kept = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "_name_or_path")}
    return _TRANSFORMERS.format(
        name=name,
        architecture=architecture,
        weights=f"{name}.safetensors",
        config=pformat({**kept, "num_labels": len(ordered)}, width=110, sort_dicts=True),
        preprocessing=_preprocessing_text(_processor(_json(folder / _PROCESSOR, source), source)),
        labels=_labels_text(ordered, len(ordered)),
    )


def _is_classifier(architecture: str) -> bool:
    # It becomes part of a recipe's text.
    return architecture.isidentifier() and architecture.endswith(_CLASSIFIER)


def _processor(config: Mapping[str, Any], source: ModelSource) -> ImagePreprocessing:
    """Return the handler's preprocessing that is closest to a processor of transformers.

    Raises:
        ExportError: the handler has nothing similar.
    """
    size, crop = config.get("size"), config.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size or {})
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop or {})
    edge = size.get("shortest_edge") or size.get("height")
    way = _INTERPOLATIONS.get(int(config.get("resample", 2)))
    if not isinstance(edge, int) or way is None or size.get("height", edge) != size.get("width", edge):
        raise ExportError(f"--from {source}: {_PROCESSOR} resizes as the handler does not: {config}", tip=_OTHERWISE)
    if not config.get("do_center_crop") or not crop:
        # For example those that resize to a square, or give the share of the centre crop.
        height = width = edge
        edge = int(edge / float(config.get("crop_pct") or 1.0))
    else:
        height, width = int(crop["height"]), int(crop["width"])
    normalises = config.get("do_normalize", True)
    mean = tuple(config["image_mean"]) if normalises and "image_mean" in config else (0.0, 0.0, 0.0)
    std = tuple(config["image_std"]) if normalises and "image_std" in config else (1.0, 1.0, 1.0)
    return ImagePreprocessing(edge, (height, width), mean, std, "bicubic" if way == "bicubic" else "bilinear")


def _preprocessing_text(made: ImagePreprocessing) -> str:
    return (
        f"resize={made.resize},\n        crop={made.crop},\n        mean={made.mean},\n        std={made.std},\n"
        f"        interpolation={made.interpolation!r},"
    )


def _labels_text(labels: list[str] | None, classes: int) -> str:
    if labels is None:
        return "imagenet_labels" if classes == 1000 else f"[str(number) for number in range({classes})]"
    return pformat(labels, width=110, compact=True).replace("\n", "\n    ")


_TIMM = '''"""{architecture} of timm, as a folder of the Hugging Face hub has it.

Try: marsmith export {name}
"""

from pathlib import Path

import timm

from marsmith.export import ImagePreprocessing, Recipe, imagenet_labels  # noqa: F401

RECIPE = Recipe(
    build=lambda: timm.create_model({build}),
    bundled_weights=lambda: Path(__file__).with_name("{weights}"),
    preprocessing=ImagePreprocessing(
        {preprocessing}
    ),
    labels={labels},
)
'''

_TRANSFORMERS = '''"""{architecture} of transformers, as a folder of the Hugging Face hub has it.

Try: marsmith export {name}
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from marsmith.export import ImagePreprocessing, Recipe

CONFIG = {config}


class Classifier(torch.nn.Module):
    """The model, which returns the logits alone."""

    def __init__(self):
        super().__init__()
        self.model = AutoModelForImageClassification.from_config(AutoConfig.for_model(**CONFIG))

    def forward(self, images):
        return self.model(pixel_values=images).logits


RECIPE = Recipe(
    build=Classifier,
    bundled_weights=lambda: Path(__file__).with_name("{weights}"),
    adapt_weights=lambda state: {{f"model.{{name}}": tensor for name, tensor in state.items()}},
    # What its preprocessor_config.json says. The handler cuts the middle out; it does not squash a photo to a square.
    preprocessing=ImagePreprocessing(
        {preprocessing}
    ),
    labels={labels},
)
'''
