"""Decoding of pictures to the uint8 tensor that an image model takes.

The pixels are those of the reference, with which torchvision users train and validate, within 1/255: open with
Pillow, turn upright (``ImageOps.exif_transpose``), ``convert("RGB")`` (which drops alpha), ``Resize`` with antialiasing
and ``CenterCrop`` on the Pillow image. One correction: 16-bit gray keeps its upper byte, which ``convert`` would clip.

torchvision's decoder reads JPEG if it exists: it is a quarter faster than Pillow's, with equal pixels. Pillow reads all
other formats. For PNG torchvision's decoder would end the process on some files with one flipped bit (seen with
0.29.2), and so fail the whole batch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFile
from torch.nn.functional import interpolate, pad

from marsmith_handler.errors import BadRequest, ContentTooLarge, ItemError, UnprocessableContent
from marsmith_handler.image.formats import MAX_COPIED_PIXELS, hush_pillow, open_image
from marsmith_handler.image.torchvision_operators import load_torchvision_operators

__all__ = ["decode_image", "decode_whole_image"]

load_torchvision_operators()

DCT_MARGIN = 2  # dct_scaling keeps the shorter side at least this many times the resized one

_READ_AS_RGB = 3  # torchvision.io.ImageReadMode.RGB
_ORIENTATION_TAG = 0x0112
# EXIF orientation -> (swap rows and columns, then flip these dimensions of (3, height, width)).
_TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}


def decode_image(
    body: bytes | bytearray | memoryview,
    *,
    resize: int,
    crop: tuple[int, int],
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    dct_scaling: bool = False,
) -> torch.Tensor:
    """Decode a picture, turn it upright, resize its shorter side and crop its centre.

    Reads JPEG, PNG, WebP, GIF and TIFF (first frame or page), BMP, and AVIF if Pillow has it. Safe to call from
    several threads; most of the time is spent outside the interpreter lock.

    Args:
        body: content of the file.
        resize: length of the shorter side after resizing, in pixels.
        crop: height and width of the centre that is kept, in pixels; a smaller picture is padded with black, as
            torchvision's ``CenterCrop`` does.
        interpolation: ``bilinear`` or ``bicubic``, both with antialiasing.
        max_pixels: maximum number of pixels of the picture, and of its resized form; ``None``: 50 million
            for a baseline JPEG, 12.5 million for any other picture and a resized one.
        max_bytes: maximum size of the file; ``None``: no limit.
        dct_scaling: decode a large JPEG at 1/2, 1/4 or 1/8 of its size if the shorter side stays at least twice
            ``resize``. Faster; the pixels then differ from the reference (see docs/explanation/images.md).

    Returns:
        uint8 tensor (3, height, width), RGB, contiguous.

    Raises:
        ItemError: 400 empty, truncated or broken; 413 over a limit; 415 not a known format; 422 not usable:
            no pixels, far too long for its width, or numbers without a defined range.
    """
    image = open_image(body, max_pixels=max_pixels, max_bytes=max_bytes)
    height, width = _resized(image.height, image.width, resize, max_pixels or MAX_COPIED_PIXELS)
    with torch.inference_mode():
        pixels = _decode(image, body, DCT_MARGIN * resize if dct_scaling else None)
        return _fit(pixels, _orientation(image), (height, width), crop, interpolation)


def decode_whole_image(
    body: bytes | bytearray | memoryview, *, max_pixels: int | None = None, max_bytes: int | None = None
) -> torch.Tensor:
    """Decode a picture and turn it upright, with all its pixels; arguments and errors as in ``decode_image``.

    Returns:
        uint8 tensor (3, height, width), RGB, contiguous.
    """
    image = open_image(body, max_pixels=max_pixels, max_bytes=max_bytes)
    with torch.inference_mode():
        pixels = _decode(image, body, None)
        transposed, flipped = _TURNS.get(_orientation(image), (False, ()))
        pixels = pixels.transpose(1, 2) if transposed else pixels
        return pixels.flip(flipped).contiguous()


def _resized(height: int, width: int, resize: int, max_pixels: int) -> tuple[int, int]:
    """Height and width with the shorter side at ``resize``, rounded as torchvision's ``Resize`` rounds."""
    longer = int(resize * max(height, width) / min(height, width))
    if resize * longer > max_pixels:
        raise UnprocessableContent(
            f"the picture is {width} x {height}: {resize} x {longer} with its shorter side at {resize}"
        )
    return (resize, longer) if height <= width else (longer, resize)


def _decode(image: ImageFile.ImageFile, body: bytes | bytearray | memoryview, shorter_side: int | None) -> torch.Tensor:
    """All pixels, uint8 (3, height, width), RGB as stored (not turned), with the channels of a pixel side by side."""
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    scaled = shorter_side is not None and kind == "JPEG" and _scale_while_decoding(image, shorter_side)
    if kind == "JPEG" and image.mode in ("RGB", "L") and not scaled:
        pixels = _decode_with_torchvision(body)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(image, kind)


def _scale_while_decoding(image: Image.Image, shorter_side: int) -> bool:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 while the shorter side keeps ``shorter_side``; return whether it will."""
    return min(image.size) >= 2 * shorter_side and image.draft(image.mode, (shorter_side, shorter_side)) is not None


def _decode_with_torchvision(body: bytes | bytearray | memoryview) -> torch.Tensor | None:
    """Pixels of a gray or colour JPEG; ``None`` if torchvision declines: then Pillow decides.

    The operator is called directly: torchvision.io, which wraps it, takes long to import, and warns since 0.29 that it
    will be removed.
    """
    data = body if isinstance(body, bytearray) else bytearray(body)  # torch warns about memory that is read-only
    try:
        pixels: torch.Tensor = torch.ops.image.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), _READ_AS_RGB)
    except (AttributeError, RuntimeError):
        return None
    return pixels


def _decode_with_pillow(image: ImageFile.ImageFile, kind: str) -> torch.Tensor:
    hush_pillow()
    try:
        image.load()
        # Pillow's WebP and AVIF keep two more copies of the pixels: in the decoder, and in the file object.
        image.fp = None
        vars(image).pop("_decoder", None)
        image.info.pop("transparency", None)  # convert would warn about it, or keep it; alpha is dropped here
        eight = _eight_bits(image, kind)
        pixels = np.array(eight if eight.mode == "RGB" else eight.convert("RGB"))
    except (Image.DecompressionBombError, MemoryError) as exc:
        raise ContentTooLarge(f"the {kind} picture takes more memory than this server has for it") from exc
    except ItemError:
        raise
    except Exception as exc:  # Pillow's decoders raise many types: OSError, SyntaxError ...
        raise BadRequest(f"the {kind} picture is truncated or broken") from exc
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _eight_bits(image: Image.Image, kind: str) -> Image.Image:
    """Convert 16-bit gray to 8 bits by its upper byte; refuse integers and floats, whose range is not defined."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnprocessableContent(
            f"the {kind} picture holds numbers of mode {image.mode}, without a defined black and white"
        )
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1 to 8; 1 if it is missing or broken, because the pixels are still good.

    Read after the pixels: Pillow turns TIFF while loading, and removes the tag.
    """
    hush_pillow()
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # for broken EXIF Pillow's parser raises many types
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def _fit(
    pixels: torch.Tensor,
    orientation: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    interpolation: str,
) -> torch.Tensor:
    """Resize to ``size`` (of the picture as stored), turn upright and crop."""
    transposed, flipped = _TURNS.get(orientation, (False, ()))
    # Turning the small picture is cheaper, and with bilinear filters gives the same. Bicubic filters overshoot and are
    # clipped between the two directions, so the order matters (up to 6 / 255): then the large picture is turned.
    early = transposed and interpolation == "bicubic"
    if early:
        pixels = pixels.permute(2, 1, 0).contiguous().permute(2, 0, 1)
        size = size[::-1]
    pixels = _resize(pixels, size, interpolation)
    if transposed and not early:
        pixels = pixels.transpose(1, 2)
    if flipped:
        pixels = pixels.flip(flipped)
    return _crop_centre(pixels, crop).contiguous()


def _resize(pixels: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Resize to height and width as torchvision's ``resize`` does, with antialiasing."""
    if pixels.shape[1:] == size:
        return pixels
    # In a batch of one, torch does not recognise channels-last memory unless the first stride shows it: https://github.com/pytorch/pytorch/issues/68430
    batch = pixels.as_strided((1, *pixels.shape), (pixels.numel(), *pixels.stride()))
    resized: torch.Tensor = interpolate(batch, size, mode=interpolation, align_corners=False, antialias=True)
    return resized[0]


def _crop_centre(pixels: torch.Tensor, crop: tuple[int, int]) -> torch.Tensor:
    """Keep the centre, on black if the picture is smaller; odd differences are split as torchvision splits them."""
    low = [max(0, wanted - there) for wanted, there in zip(crop, pixels.shape[1:], strict=True)]
    if any(low):
        height, width = low
        pixels = pad(pixels, (width // 2, (width + 1) // 2, height // 2, (height + 1) // 2))
    top, left = (round((there - wanted) / 2) for wanted, there in zip(crop, pixels.shape[1:], strict=True))
    return pixels[:, top : top + crop[0], left : left + crop[1]]
