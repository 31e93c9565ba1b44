"""Format and size of a picture, from its first bytes and its header, before any pixel is decoded.

The content type that a client sends is ignored, because it is often wrong; the bytes decide.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import struct
import warnings
import zlib

from PIL import Image, ImageFile, features

from marsmith_handler.errors import BadRequest, ContentTooLarge, UnprocessableContent, UnsupportedMediaType
from marsmith_handler.file_pieces import MAX_PIECES, in_too_many_pieces

# The largest phone pictures in common use (8160 x 6120); 150 MB when a baseline JPEG is decoded.
MAX_PIXELS = 50_000_000
# Of every other format: Pillow and a progressive JPEG keep several copies at once, up to 200 MB (4032 x 3024 fits).
MAX_COPIED_PIXELS = 12_500_000
MAX_STRIPS = 65_536
MAX_SCANS_OF_LARGEST = 20

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Importing a plugin registers it. By default Pillow imports all seventy at the first WebP.
for _plugin in ("Jpeg", "Mpo", "Png", "WebP", "Gif", "Bmp", "Tiff", "Avif"):
    with contextlib.suppress(ImportError):  # Pillow before 11.3 has no AVIF
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")
_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftyp(?:avi[fs]|(?:mif1|msf1)....(?:....){0,8}avi[fs])", re.DOTALL)),
)
_HEAD_BYTES = 64
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def sniff(head: bytes) -> str | None:
    """Return the format of a body, from its first bytes.

    Args:
        head: the first 64 bytes, or all of a shorter body.

    Returns:
        ``JPEG``, ``PNG``, ``WEBP``, ``GIF``, ``BMP``, ``TIFF`` or ``AVIF``; ``None`` for anything else.
    """
    return next((name for name, signature in _SIGNATURES if signature.match(head)), None)


def available_formats() -> tuple[str, ...]:
    """The formats that the Pillow of this environment decodes; AVIF and WebP may be missing."""
    return tuple(name for name in _FORMATS if name not in ("AVIF", "WEBP") or _has_codec(name.lower()))


def open_image(
    body: bytes | bytearray | memoryview, *, max_pixels: int | None, max_bytes: int | None
) -> ImageFile.ImageFile:
    """Read and check the header of a picture; no pixel is decoded.

    Args:
        body: the file.
        max_pixels: maximum number of pixels (width times height); ``None``: ``usual_pixels``.
        max_bytes: maximum size of the file; ``None``: no limit.

    Returns:
        The image, not loaded, with at least one pixel and at most ``max_pixels``.

    Raises:
        ItemError: 400 empty or broken header, 413 over a limit, 415 not a known format, 422 a picture without pixels.
    """
    data = memoryview(body)
    if max_bytes is not None and data.nbytes > max_bytes:
        raise ContentTooLarge(f"the picture has {data.nbytes} bytes, more than the {max_bytes} allowed")
    kind = _known_format(bytes(data[:_HEAD_BYTES]))
    if in_too_many_pieces(data, kind):
        raise ContentTooLarge(f"the {kind} picture is cut into more than the {MAX_PIECES} pieces allowed")
    image = _read_header(data, kind)
    _check_extent(image, kind, usual_pixels(image) if max_pixels is None else max_pixels)
    _check_work(image, kind, data, max_pixels or MAX_PIXELS)
    if kind == "PNG":
        _check_png_data(data)
    return image


def usual_pixels(image: Image.Image) -> int:
    """Return the default maximum number of pixels of this format."""
    is_baseline = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    return MAX_PIXELS if is_baseline else MAX_COPIED_PIXELS


def hush_pillow() -> None:
    """Keep Pillow's warnings about unusual files out of the worker's log; this module checks what matters.

    ``warnings.catch_warnings`` changes process-wide state, which is wrong if several threads decode. So one filter for
    warnings of Pillow's own modules stays installed instead.
    """
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


def _known_format(head: bytes) -> str:
    if not head:
        raise BadRequest("the body is empty, where a picture is expected")
    kind = sniff(head)
    available = available_formats()
    if kind is None:
        raise UnsupportedMediaType(f"the body starts with {head[:8]!r}, which is none of {', '.join(available)}")
    if kind not in available:
        raise UnsupportedMediaType(
            f"the body is {kind}, which this server does not read; it reads {', '.join(available)}"
        )
    return kind


def _read_header(data: memoryview, kind: str) -> ImageFile.ImageFile:
    hush_pillow()
    try:
        return Image.open(io.BytesIO(data), formats=(kind,))
    except (Image.DecompressionBombError, MemoryError) as exc:
        raise ContentTooLarge(f"the {kind} header announces more than this server decodes") from exc
    except Exception as exc:  # Pillow's parsers raise many types: KeyError, struct.error ...
        raise BadRequest(f"the {kind} header is truncated or broken") from exc


def _check_extent(image: Image.Image, kind: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnprocessableContent(f"the {kind} picture is {width} x {height}: it has no pixels")
    if width * height > max_pixels:
        raise ContentTooLarge(f"the {kind} picture is {width} x {height} pixels, more than the {max_pixels} allowed")


def _check_work(image: ImageFile.ImageFile, kind: str, data: memoryview, max_pixels: int) -> None:
    """Refuse small files that take long to decode: few pixels, but many passes over them."""
    if len(image.tile) > MAX_STRIPS:
        raise ContentTooLarge(
            f"the {kind} picture is cut into {len(image.tile)} pieces, more than the {MAX_STRIPS} allowed"
        )
    if kind == "JPEG" and image.info.get("progressive"):
        scans = bytes(data).count(b"\xff\xda")
        if scans * image.width * image.height > MAX_SCANS_OF_LARGEST * max_pixels:
            raise ContentTooLarge(f"the JPEG picture repeats itself in {scans} scans, too many for its size")


def _check_png_data(data: memoryview) -> None:
    """Compare the CRC of the compressed pixels, which Pillow skips: a stopped download may leave zeros there."""
    position = 8
    while position + 12 <= data.nbytes:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"IDAT" and data[end - 4 : end] != struct.pack(">I", zlib.crc32(data[position + 4 : end - 4])):
            raise BadRequest("the PNG picture is truncated or broken")
        if kind == b"IEND":
            return
        position = end


def _has_codec(name: str) -> bool:
    return name in features.modules and bool(features.check(name))
