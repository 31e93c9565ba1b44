"""Images of an export for tracing, calibration and comparison, and forms loaded as in a worker. Imports torch.

A form loaded as a worker will load it: through the project's own ``handlers/marsmith_handler``. Imports torch.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marsmith.config.form import BASE, Form, handler_block
from marsmith.errors import ExportError
from marsmith.export.crops import (
    CALIBRATION_SEED,
    TUNING_SEED,
    VALIDATION_SEED,
    centre_crops,
    random_crops,
    reference_images,
)
from marsmith.export.images import read_labels
from marsmith.export.messages import JobRequest
from marsmith.export.recipes.recipe import ImagePreprocessing
from marsmith.runtime.library import ENGINES

# Numbers of images for the calibration of int8, for the choice of its layers, and for the gate.
CALIBRATION_IMAGES, TUNING_IMAGES, VALIDATION_CROPS = 96, 96, 160


@dataclass(frozen=True)
class JobImages:
    """Images of one export, uint8 (3, H, W).

    Attributes:
        traced_with: the examples, their mirror images and, last, noise.
        inputs: images for the gate.
        names: names of their files; empty if they do not come from files.
    """

    request: JobRequest
    preprocessing: ImagePreprocessing
    traced_with: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor, ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, request: JobRequest, preprocessing: ImagePreprocessing) -> JobImages:
        """Read and crop the images of a request.

        Raises:
            ExportError: a file is not an image.
        """
        sets = request.images
        traced_with = reference_images(_read(sets["examples"]), preprocessing)
        photos = list(dict.fromkeys([*sets["examples"], *(sets["validation"] if request.thorough else [])]))
        inputs = centre_crops(_read(photos), preprocessing)
        names = [Path(path).name for path in photos for _ in range(2)]
        if request.thorough:
            crops = random_crops(_read(sets["validation"]), preprocessing, count=VALIDATION_CROPS, seed=VALIDATION_SEED)
            inputs += crops
            names += [Path(sets["validation"][i % len(sets["validation"])]).name for i in range(len(crops))]
        # A recipe whose spec has no examples is compared on noise, which still detects major errors.
        return cls(request, preprocessing, tuple(traced_with), tuple(inputs or traced_with[-1:]), tuple(names))

    @property
    def noise(self) -> torch.Tensor:
        """An image of noise."""
        return self.traced_with[-1]

    def calibration(self) -> list[torch.Tensor]:
        """Return the images for the calibration of int8."""
        return self._crops(CALIBRATION_IMAGES, CALIBRATION_SEED)

    def tuning(self) -> list[torch.Tensor]:
        """Return the images for the choice of int8 layers."""
        return self._crops(TUNING_IMAGES, TUNING_SEED)

    def batch(self, size: int) -> torch.Tensor:
        """Return a batch of the gate's images, repeated if there are too few: uint8 (size, 3, H, W)."""
        return torch.stack([self.inputs[i % len(self.inputs)] for i in range(size)])

    def classes(self, names: Mapping[str, str]) -> list[int | None]:
        """Return the class of each of ``inputs`` if the request has labels; else an empty list.

        Args:
            names: label by class index as text.

        Raises:
            ExportError: the labels cannot be read, or the model does not have a label.
        """
        if not self.request.labels or not self.names:
            return []
        indices = {label: int(index) for index, label in names.items()}
        known = read_labels(Path(self.request.labels))
        classes = {*indices, *indices.values()}
        unknown = [value for value in known.values() if value not in classes]
        if unknown:
            kind = "label" if isinstance(unknown[0], str) else "class"
            raise ExportError(f"validation_labels: the model has no {kind} {unknown[0]!r}")
        right = {name: value if isinstance(value, int) else indices[value] for name, value in known.items()}
        return [right.get(name) for name in self.names]

    def _crops(self, count: int, seed: int) -> list[torch.Tensor]:
        photos = _read(self.request.images["calibration"])
        return random_crops(photos, self.preprocessing, count=count, seed=seed) or list(self.traced_with)


def _read(paths: Sequence[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


MODULE = ".".join(ENGINES.parts)


def load_in_engine(
    handlers: Path | None, files: Any, form: Form, device: str, threads: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load the files of a form; return a function of uint8 (N, 3, H, W) that gives float32 on the CPU.

    Args:
        handlers: folder with the ``marsmith_handler`` to use; None if there is none beside the handler.
        files: result of ``serialize``.
        form: form of the files.
        device: ``cpu`` or ``cuda``.
        threads: number of threads of one operation.

    Raises:
        ExportError: the handler cannot run this form.
    """
    place = torch.device(device)
    if handlers is None:
        if form != BASE:
            raise ExportError(
                f"there is no {MODULE} beside the handler, so no worker could run {form}",
                tip="build on BaseHandler of handlers/marsmith_handler, or export torchscript/float32/torch",
            )
        module = _load_torchscript(files.serialized_file, place)
        return lambda images: module(images.to(place)).cpu()
    sys.path.insert(0, str(handlers))
    try:
        engines = importlib.import_module(MODULE)
        block = handler_block(form, files.engine_file, "refuse")
        loaded = engines.load_engine(files.serialized_file.parent, files.serialized_file.name, block, place, threads)
    finally:
        sys.path.remove(str(handlers))
    if loaded.name != form.engine:
        raise ExportError(f"{form}: the engine that loads is {loaded.name}, not {form.engine}")
    return lambda images: loaded(images.to(place)).cpu()


def _load_torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)
    return module.eval()
