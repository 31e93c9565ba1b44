"""Crops of photos as uint8 images: the centre crop used in serving, its mirror image, and random crops.

Imports torch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import v2

from marsmith.errors import ExportError
from marsmith.export.recipes.recipe import ImagePreprocessing
from marsmith.export.recipes.weights import RANDOM_SEED

# Each use of random crops has a separate seed, so that no two uses get the same crops.
CALIBRATION_SEED, TUNING_SEED, VALIDATION_SEED = 1, 2, 3
# Share of the photo's area in a crop: as in the training of classifiers, but never so small that only texture is left.
_CROP_AREA = (0.5, 1.0)


def reference_images(encoded: Sequence[bytes], preprocessing: ImagePreprocessing) -> list[torch.Tensor]:
    """Decode, resize and crop images with Pillow and torchvision's reference transforms.

    Returns:
        uint8 tensors (3, H, W): each image, its mirror image and, last, noise, so that the list is never empty.

    Raises:
        ExportError: an example is not an image.
    """
    images = centre_crops(encoded, preprocessing)
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    images.append(torch.randint(0, 256, (3, *preprocessing.crop), dtype=torch.uint8, generator=generator))
    return images


def centre_crops(encoded: Sequence[bytes], preprocessing: ImagePreprocessing) -> list[torch.Tensor]:
    """Return the centre crop of each image as in serving, and its mirror image: uint8 (3, H, W)."""
    prepare = v2.Compose(
        [v2.Resize(preprocessing.resize, _mode(preprocessing), antialias=True), v2.CenterCrop(preprocessing.crop)]
    )
    images = []
    for photo in _decoded(encoded):
        image = prepare(photo).contiguous()
        images += [image, image.flip(-1)]
    return images


def random_crops(
    encoded: Sequence[bytes], preprocessing: ImagePreprocessing, *, count: int, seed: int
) -> list[torch.Tensor]:
    """Return ``count`` random crops, from the images in turn, every second one mirrored: uint8 (3, H, W).

    The same arguments give the same crops on every machine.
    """
    photos = _decoded(encoded)
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for index in range(count if photos else 0):
        photo = photos[index % len(photos)]
        top, left, height, width = _window(photo.shape[1:], preprocessing.crop, generator)
        crop = v2.functional.resized_crop(
            photo, top, left, height, width, list(preprocessing.crop), _mode(preprocessing), antialias=True
        )
        crops.append((crop.flip(-1) if index // len(photos) % 2 else crop).contiguous())
    return crops


def _window(size: torch.Size, crop: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a window with the crop's aspect ratio, in pixels."""
    height, width = size
    area, down, right = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    whole = min(height / crop[0], width / crop[1])
    scale = whole * (_CROP_AREA[0] + area * (_CROP_AREA[1] - _CROP_AREA[0])) ** 0.5
    tall, wide = max(1, int(crop[0] * scale)), max(1, int(crop[1] * scale))
    return int(down * (height - tall)), int(right * (width - wide)), tall, wide


def _decoded(encoded: Sequence[bytes]) -> list[torch.Tensor]:
    photos = []
    for body in encoded:
        try:
            photo = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ExportError(f"an example of the spec is not an image: {error}") from error
        photos.append(v2.functional.pil_to_tensor(photo))
    return photos


def _mode(preprocessing: ImagePreprocessing) -> v2.InterpolationMode:
    return v2.InterpolationMode(preprocessing.interpolation)
