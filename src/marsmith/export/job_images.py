"""The images of one export: what it is traced with, calibrated on and compared on. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

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

# How many images int8 is calibrated on, its layers are chosen on, and the gate compares on.
CALIBRATION_IMAGES, TUNING_IMAGES, VALIDATION_CROPS = 96, 96, 160


@dataclass(frozen=True)
class JobImages:
    """The images of one export, uint8 (3, H, W).

    Attributes:
        traced_with: the examples, their mirror images and, last, noise.
        inputs: what the gate compares on.
        names: of the files that they come from; empty where they come from none.
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
            ExportError: one of them is no image.
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
        # A recipe whose spec has no examples is compared on noise: little, but it finds what does not fit at all.
        return cls(request, preprocessing, tuple(traced_with), tuple(inputs or traced_with[-1:]), tuple(names))

    @property
    def noise(self) -> torch.Tensor:
        """An image of noise."""
        return self.traced_with[-1]

    def calibration(self) -> list[torch.Tensor]:
        """Return what int8 is calibrated on."""
        return self._crops(CALIBRATION_IMAGES, CALIBRATION_SEED)

    def tuning(self) -> list[torch.Tensor]:
        """Return what the layers of int8 are chosen on."""
        return self._crops(TUNING_IMAGES, TUNING_SEED)

    def batch(self, size: int) -> torch.Tensor:
        """Return a batch of the gate's images, repeated where they are too few: uint8 (size, 3, H, W)."""
        return torch.stack([self.inputs[i % len(self.inputs)] for i in range(size)])

    def classes(self, names: Mapping[str, str]) -> list[int | None]:
        """Return the right class of each of ``inputs``, where the request brings labels; empty where not.

        Args:
            names: class index, as text, to label.

        Raises:
            ExportError: the labels cannot be read, or the model has no such label.
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
