"""An eager module to a TorchScript file that gives the same answers. Imports torch."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import v2

from marsmith import parity, torchscript_file
from marsmith.errors import ExportError
from marsmith.formats.model_spec import ExportSpec
from marsmith.image_graph import ImageGraph
from marsmith.recipe import ImagePreprocessing, Recipe, load_recipe
from marsmith.weights import RANDOM_SEED, apply_weights, load_weights


@dataclass(frozen=True)
class TorchScriptProduct:
    """What one export gave.

    Attributes:
        staged: the serialized file, under a temporary name in the target folder.
        report: what is recorded about it.
        labels: class index, as text, to name: the stock format of index_to_name.json.
        files: files besides the recipe that it was made from.
    """

    staged: Path
    report: dict[str, Any]
    labels: dict[str, str]
    files: tuple[Path, ...]


def export_torchscript(
    recipe_file: Path,
    export: ExportSpec,
    weights_source: str,
    examples: Sequence[bytes],
    root: Path,
    folder: Path,
    on_step: Callable[[str], None],
) -> TorchScriptProduct:
    """Build, convert, compare and save under a temporary name in ``folder``.

    Args:
        recipe_file: the recipe.
        export: method, precision and gate.
        weights_source: see ``weights.load_weights``.
        examples: encoded images to trace with and to compare on; noise where there are none.
        root: what relative weight paths start from.
        folder: where the file goes.
        on_step: is told each step, in words.

    Raises:
        ExportError: the recipe, the weights or the gate say no; nothing is left in ``folder``.
    """
    on_step(f"building the eager module of {recipe_file.name}, weights: {weights_source}")
    recipe = load_recipe(recipe_file)
    weights = load_weights(weights_source, recipe, root)
    classifier = _build(recipe, recipe_file)
    apply_weights(classifier, weights)
    eager = ImageGraph(classifier, recipe.preprocessing).eval()
    images = reference_images(examples, recipe.preprocessing)
    on_step(f"converting to TorchScript ({export.method}, frozen, {export.precision})")
    raw = folder / f".raw.{os.getpid()}"
    staged = folder / f".staged.{os.getpid()}"
    try:
        _save(to_torchscript(eager, images, export.method), raw)
        torchscript_file.normalise(raw, staged)
        on_step("comparing with the eager module")
        with torch.inference_mode():
            measured = parity.compare(eager, load_torchscript(staged), images)
            classes = int(eager(images[0][None]).shape[1])
        parity.require(measured, export.gate)
        labels = _labels(recipe.labels(), classes)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    finally:
        raw.unlink(missing_ok=True)
    report = _report(export, recipe.preprocessing, classes)
    report |= {"recipe": recipe_file.name, "weights": weights.record, "parity": measured.record(export.gate)}
    return TorchScriptProduct(staged, report, labels, (weights.file,) if weights.file else ())


def to_torchscript(eager: torch.nn.Module, images: Sequence[torch.Tensor], method: str) -> torch.jit.ScriptModule:
    """Trace or script ``eager`` and freeze it: weights become constants and batch norms fold into convolutions.

    Raises:
        ExportError: TorchScript cannot express the module.
    """
    # Two inputs: a batch of one would bake broadcasts of size one into the trace.
    example = torch.stack([images[0], images[-1]])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            made = torch.jit.script(eager) if method == "script" else torch.jit.trace(eager, example, check_trace=False)
            frozen: torch.jit.ScriptModule = torch.jit.freeze(made.eval())
        except Exception as error:  # torch raises what it likes here, RuntimeError and NotSupportedError among it
            other = "trace" if method == "script" else "script"
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(
                f"TorchScript's {method} cannot express the module: {reason}",
                tip=f"try export.method: {other} in the spec",
            ) from error
    return frozen


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")
    return module.eval()


def reference_images(encoded: Sequence[bytes], preprocessing: ImagePreprocessing) -> list[torch.Tensor]:
    """Decode, resize and crop images with Pillow and torchvision's reference transforms.

    Returns:
        uint8 tensors (3, H, W); besides each image its mirror image and, last, noise, so that there are never none.

    Raises:
        ExportError: an example is not an image.
    """
    mode = v2.InterpolationMode(preprocessing.interpolation)
    prepare = v2.Compose(
        [v2.PILToTensor(), v2.Resize(preprocessing.resize, mode, antialias=True), v2.CenterCrop(preprocessing.crop)]
    )
    images = []
    for body in encoded:
        try:
            photo = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ExportError(f"an example of the spec is not an image: {error}") from error
        image = prepare(photo).contiguous()
        images += [image, image.flip(-1)]
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    images.append(torch.randint(0, 256, (3, *preprocessing.crop), dtype=torch.uint8, generator=generator))
    return images


def _build(recipe: Recipe, recipe_file: Path) -> torch.nn.Module:
    torch.manual_seed(RANDOM_SEED)
    try:
        module = recipe.build()
    except Exception as error:
        raise ExportError(f"build() of the recipe {recipe_file} raises {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"build() of the recipe {recipe_file} returns {type(module).__name__}, not a torch.nn.Module")
    return module.eval()


def _save(module: torch.jit.ScriptModule, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, path)


def _labels(names: Sequence[str], classes: int) -> dict[str, str]:
    if len(names) != classes:
        raise ExportError(f"the recipe has {len(names)} labels, and the module {classes} outputs")
    # Two ImageNet classes are called crane and two maillot; a reply is a mapping, where one would hide the other.
    seen: set[str] = set()
    repeated = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
    return {str(i): f"{name} ({i})" if name in repeated else name for i, name in enumerate(names)}


def _report(export: ExportSpec, preprocessing: ImagePreprocessing, classes: int) -> dict[str, Any]:
    height, width = preprocessing.crop
    pixels = {"name": "images", "dtype": "uint8", "shape": [None, 3, height, width], "layout": "NCHW", "color": "RGB"}
    return {
        "format": export.format,
        "method": export.method,
        "precision": export.precision,
        "inputs": [pixels],
        "outputs": [{"name": "probabilities", "dtype": "float32", "shape": [None, classes]}],
        "preprocessing": {
            "byTheHandler": {
                "resize": preprocessing.resize,
                "crop": list(preprocessing.crop),
                "interpolation": preprocessing.interpolation,
            },
            "inTheGraph": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        },
    }
