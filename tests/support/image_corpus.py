"""Payloads for an image handler: good ones of every kind, and malformed ones of every sort that people send.

Everything is made in memory from scikit-image's photos and seeded numbers, so the bytes need no download and no
binary file in the repository. Three sets:

- ``good_images()``: each decodes to the upright photo; name -> bytes.
- ``malformed_payloads()``: each must be refused; (name, bytes, content type).
- ``doubtful_payloads()``: each may be answered or refused, and must do no harm; the same triples.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, features
from skimage import data

Payload = tuple[str, bytes, str]
Pixels = npt.NDArray[np.uint8]

SIZE = (200, 150)
MEDIA_TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "avif": "image/avif",
}
ORIENTATION = 0x0112
FROM_UPRIGHT = {
    # What must be done to the upright photo so that a viewer which obeys this orientation turns it upright again.
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def avif_can_be_written() -> bool:
    """True where this Pillow reads and writes AVIF (11.3 and later, with the codec built in)."""
    return "avif" in features.modules and bool(features.check("avif"))


def photo(width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    """A colour photo of the given size, in pixels, mode RGB."""
    return Image.fromarray(data.coffee()).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of ``image`` as a file of ``kind``, one of the keys of MEDIA_TYPES."""
    out = io.BytesIO()
    image.save(out, kind.upper(), **options)
    return out.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk with its length and CRC."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: bytes, *chunks: bytes) -> bytes:
    """A PNG file of the given IHDR content and whole chunks; the final IEND is added."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def png_header(width: int, height: int, *, depth: int = 8, colour: int = 2, interlaced: bool = False) -> bytes:
    """The content of an IHDR chunk; ``colour`` is 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA."""
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))


def png_16_bit_rgb(pixels: Pixels) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads and does not write."""
    wide = (pixels.astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    height, width = pixels.shape[:2]
    return png(png_header(width, height, depth=16), chunk(b"IDAT", zlib.compress(rows)))


def png_interlaced(pixels: Pixels) -> bytes:
    """A PNG in the seven passes of Adam7."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, right in passes:
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right])
    height, width = pixels.shape[:2]
    return png(png_header(width, height, interlaced=True), chunk(b"IDAT", zlib.compress(rows)))


def jpeg_turned(orientation: int) -> bytes:
    """A JPEG stored turned, whose EXIF orientation (1 to 8) says how to turn it back."""
    image = photo()
    if orientation in FROM_UPRIGHT:
        image = image.transpose(FROM_UPRIGHT[orientation])
    return encode(image, "jpeg", quality=95, subsampling=0, exif=_exif(orientation))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _jpegs(image: Image.Image) -> dict[str, bytes]:
    cmyk = encode(image.convert("CMYK"), "jpeg", quality=95)
    adobe = cmyk.index(b"Adobe")
    second = photo(100, 75)
    return {
        "jpeg": encode(image, "jpeg", quality=90),
        "jpeg-444": encode(image, "jpeg", quality=90, subsampling=0),
        "jpeg-progressive": encode(image, "jpeg", quality=90, progressive=True),
        "jpeg-restart-markers": encode(image, "jpeg", restart_marker_rows=1),
        "jpeg-gray": encode(image.convert("L"), "jpeg"),
        "jpeg-gray-turned": encode(image.convert("L").transpose(FROM_UPRIGHT[6]), "jpeg", exif=_exif(6)),
        "jpeg-rgb": encode(image, "jpeg", keep_rgb=True),
        "jpeg-cmyk": cmyk,
        "jpeg-ycck": cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12 :],
        "jpeg-mpo": _mpo(image, second),
        "jpeg-trailing-bytes": encode(image, "jpeg") + bytes(1000),
        "jpeg-broken-exif": encode(image, "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        **{f"jpeg-exif-{number}": jpeg_turned(number) for number in range(1, 9)},
    }


def _mpo(first: Image.Image, second: Image.Image) -> bytes:
    out = io.BytesIO()
    first.save(out, "MPO", save_all=True, append_images=[second])
    return out.getvalue()


def _pngs(image: Image.Image) -> dict[str, bytes]:
    pixels = np.array(image)
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    gray = image.convert("L")
    gray_wide = Image.fromarray(np.array(gray).astype(np.uint16) * 257)
    return {
        "png": encode(image, "png"),
        "png-alpha": encode(alpha, "png"),
        "png-gray": encode(gray, "png"),
        "png-gray-alpha": encode(alpha.convert("LA"), "png"),
        "png-palette": encode(image.quantize(64), "png"),
        "png-palette-4-bit": encode(image.quantize(16), "png", bits=4),
        "png-palette-transparent": encode(image.quantize(64), "png", transparency=bytes(range(64))),
        "png-1-bit": encode(image.convert("1"), "png"),
        "png-16-bit-gray": encode(gray_wide, "png"),
        "png-16-bit": png_16_bit_rgb(pixels),
        "png-interlaced": png_interlaced(pixels),
        "png-turned": encode(image.transpose(FROM_UPRIGHT[8]), "png", exif=_exif(8)),
    }


def _others(image: Image.Image) -> dict[str, bytes]:
    alpha = image.copy()
    alpha.putalpha(200)
    other = photo().transpose(Image.Transpose.ROTATE_180)
    gray_wide = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
    return {
        "webp": encode(image, "webp", quality=90),
        "webp-lossless": encode(image, "webp", lossless=True),
        "webp-alpha": encode(alpha, "webp"),
        "webp-animated": encode(image, "webp", save_all=True, append_images=[other]),
        "webp-turned": encode(image.transpose(FROM_UPRIGHT[3]), "webp", quality=90, exif=_exif(3)),
        "gif": encode(image.quantize(128), "gif"),
        "gif-animated": encode(image, "gif", save_all=True, append_images=[other]),
        "gif-transparent": encode(image.quantize(128), "gif", transparency=5),
        "bmp": encode(image, "bmp"),
        "bmp-palette": encode(image.quantize(64), "bmp"),
        "bmp-gray": encode(image.convert("L"), "bmp"),
        "tiff": encode(image, "tiff"),
        "tiff-lzw": encode(image, "tiff", compression="tiff_lzw"),
        "tiff-deflate": encode(image, "tiff", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encode(image, "tiff", compression="jpeg"),
        "tiff-fax": encode(image.convert("1"), "tiff", compression="group4"),
        "tiff-cmyk": encode(image.convert("CMYK"), "tiff"),
        "tiff-palette": encode(image.quantize(64), "tiff"),
        "tiff-alpha": encode(alpha, "tiff"),
        "tiff-16-bit-gray": encode(gray_wide, "tiff"),
        "tiff-turned": encode(image.transpose(FROM_UPRIGHT[6]), "tiff", exif=_exif(6)),
        "tiff-pages": encode(image, "tiff", save_all=True, append_images=[other]),
    }


def _avifs(image: Image.Image) -> dict[str, bytes]:
    alpha = image.copy()
    alpha.putalpha(200)
    turned = image.transpose(FROM_UPRIGHT[6])
    return {
        "avif": encode(image, "avif", quality=90),
        "avif-alpha": encode(alpha, "avif", quality=90),
        "avif-turned": encode(turned, "avif", quality=90, exif=_exif(6)),
    }


@functools.cache
def good_images() -> dict[str, bytes]:
    """One image of every kind, named ``<format>-<what is special>``; the first word is a key of MEDIA_TYPES."""
    image = photo()
    images = {**_jpegs(image), **_pngs(image), **_others(image)}
    return {**images, **_avifs(image)} if avif_can_be_written() else images


def media_type(name: str) -> str:
    """The content type that belongs to a name of ``good_images``."""
    return MEDIA_TYPES[name.partition("-")[0]]


@functools.cache
def malformed_payloads() -> tuple[Payload, ...]:
    """More than 300 bodies that no image model can answer: (name, bytes, content type), names unique."""
    sets = (_truncated(), _broken(), _wrong_magic(), _bombs(), _unusable(), _other_documents(), _json_documents())
    return tuple(payload for payloads in sets for payload in payloads)


@functools.cache
def doubtful_payloads() -> tuple[Payload, ...]:
    """Damaged pictures that a decoder may read or refuse: (name, bytes, content type)."""
    jpeg = good_images()["jpeg"]
    ended = [
        (f"jpeg-cut-at-{tenth}0%-and-ended", jpeg[: len(jpeg) * tenth // 10] + b"\xff\xd9") for tenth in range(1, 10)
    ]
    rows_missing = png(png_header(200, 150), chunk(b"IDAT", zlib.compress(bytes(601 * 100))))
    others = (("png-rows-missing", rows_missing, "image/png"),)
    return others + tuple((name, body, "image/jpeg") for name, body in ended) + tuple(_flipped(seed=7, each=12))


def large_payload(size: int = 100_000_000) -> bytes:
    """A body of ``size`` bytes that starts like a PNG; made on demand, because nothing should keep it."""
    start = good_images()["png"][:1000]
    return start + bytes(size - len(start))


def _truncated() -> Iterator[Payload]:
    whole = {"jpeg-mpo", "jpeg-trailing-bytes", "gif-animated", "webp-animated", "tiff-pages"}  # the end is not needed
    for name, body in good_images().items():
        if name in whole or (name.startswith("jpeg-exif") and name != "jpeg-exif-6"):
            continue
        for tenth in range(1, 10):
            yield f"{name}-cut-at-{tenth}0%", body[: len(body) * tenth // 10], media_type(name)


def _flipped(*, seed: int, each: int) -> Iterator[Payload]:
    """Bit flips anywhere: one to fifty of them, from a seeded generator."""
    numbers = random.Random(seed)
    for name in (
        "jpeg",
        "jpeg-progressive",
        "png",
        "png-palette",
        "webp",
        "gif",
        "bmp",
        "tiff-lzw",
        "tiff-jpeg",
        "avif",
    ):
        for number in range(each if name in good_images() else 0):
            body = bytearray(good_images()[name])
            for _ in range(numbers.choice((1, 2, 10, 50))):
                body[numbers.randrange(len(body))] ^= 1 << numbers.randrange(8)
            yield f"{name}-bit-flips-{number}", bytes(body), media_type(name)


def _broken() -> Iterator[Payload]:
    """Damage where it is certain to matter: the header, the tables, the compressed stream."""
    images = good_images()
    for name in ("jpeg", "png", "gif", "bmp", "tiff", "webp"):
        body = images[name]
        yield f"{name}-first-bytes-only", body[:8], media_type(name)
        yield f"{name}-header-zeroed", body[:8] + bytes(len(body) - 8), media_type(name)
        yield f"{name}-noise-after-magic", body[:8] + random.Random(name).randbytes(2000), media_type(name)
    rows = zlib.compress(bytes(601 * 100))
    yield "png-without-pixels", png(png_header(200, 150)), "image/png"
    yield "png-stream-is-noise", png(png_header(200, 150), chunk(b"IDAT", random.Random(1).randbytes(900))), "image/png"
    yield "png-palette-missing", png(png_header(8, 8, depth=3, colour=3), chunk(b"IDAT", rows)), "image/png"
    yield "png-header-twisted", images["png"][:8] + images["png"][33:], "image/png"
    jpeg = images["jpeg"]
    yield "jpeg-without-tables", jpeg.replace(b"\xff\xdb", b"\xff\xfe").replace(b"\xff\xc4", b"\xff\xfe"), "image/jpeg"
    yield "jpeg-without-frame", jpeg.replace(b"\xff\xc0", b"\xff\xfe"), "image/jpeg"
    yield "jpeg-only-ends", b"\xff\xd8\xff\xd9", "image/jpeg"


def _wrong_magic() -> Iterator[Payload]:
    """Pictures whose first bytes are gone, changed or shifted, and names of formats that nobody reads here."""
    for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        body = good_images()[name]
        yield f"{name}-magic-zeroed", bytes(4) + body[4:], media_type(name)
        yield f"{name}-magic-shifted", b"\n" + body, media_type(name)
        yield f"{name}-magic-missing", body[4:], media_type(name)
        yield f"{name}-in-base64-of-nothing", b"data:;base64,", media_type(name)
    yield "heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "image/heic"
    yield "jpeg-2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "image/jp2"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "image/svg+xml"
    yield "icon", b"\0\0\1\0\1\0\x10\x10" + bytes(100), "image/x-icon"
    yield "photoshop", b"8BPS\0\1" + bytes(100), "image/vnd.adobe.photoshop"
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "application/postscript"


def _bombs() -> Iterator[Payload]:
    """Small files that ask for much memory or time."""
    idat = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    for width, height in (
        (60_000, 60_000),
        (2**31 - 1, 2**31 - 1),
        (100_000_000, 1),
        (1, 100_000_000),
        (10_000, 10_000),
    ):
        yield f"png-{width}x{height}", png(png_header(width, height), idat), "image/png"
    large = zlib.compress(bytes(50_000_000), 9)
    for name, start in ((b"zTXt", b"Comment\0\0"), (b"iCCP", b"icc\0\0"), (b"iTXt", b"Comment\0\1\0\0\0")):
        body = png(png_header(8, 8), chunk(name, start + large), chunk(b"IDAT", zlib.compress(bytes(25 * 8))))
        yield f"png-{name.decode()}-bomb", body, "image/png"
    yield "gif-65535x65535", b"GIF89a\xff\xff\xff\xff" + good_images()["gif"][10:], "image/gif"
    bmp = good_images()["bmp"]
    yield "bmp-60000x60000", bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:], "image/bmp"
    jpeg = good_images()["jpeg"]
    frame = jpeg.index(b"\xff\xc0")
    yield "jpeg-65500x65500", jpeg[: frame + 5] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 9 :], "image/jpeg"
    yield "jpeg-many-scans", jpeg_of_many_scans(3000), "image/jpeg"
    yield "webp-16384x16384", webp_header(16_384, 16_384), "image/webp"
    yield "tiff-60000x60000", tiff_header(60_000, 60_000, strips=1), "image/tiff"
    yield "tiff-many-strips", tiff_header(1, 100_000, strips=100_000), "image/tiff"


def jpeg_of_many_scans(count: int) -> bytes:
    """A progressive JPEG of 4000 x 3000 pixels whose last scan is repeated ``count`` times."""
    body = encode(Image.new("L", (4000, 3000), 77), "jpeg", progressive=True)
    last = body.rindex(b"\xff\xda")
    return body[:last] + body[last:-2] * count + b"\xff\xd9"


def webp_header(width: int, height: int) -> bytes:
    """A WebP file that announces a canvas (VP8X) and holds an empty picture."""
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    content = (
        b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + b"VP8L" + struct.pack("<I", 6) + b"\x2f" + bytes(5)
    )
    return b"RIFF" + struct.pack("<I", len(content)) + content


def tiff_header(width: int, height: int, *, strips: int) -> bytes:
    """An 8-bit gray TIFF of ``strips`` strips that all point at the same few bytes."""
    rows = -(-height // strips)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    data_at = 8 + 2 + 12 * 9 + 4
    many = data_at + 16
    offsets = data_at if strips == 1 else many
    lengths = width * rows if strips == 1 else many + 4 * strips
    tags += [(273, 4, strips, offsets), (277, 3, 1, 1), (278, 4, 1, rows), (279, 4, strips, lengths)]
    body = (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4 + 16)
    )
    if strips > 1:
        body += struct.pack("<I", data_at) * strips + struct.pack("<I", width * rows) * strips
    return body


def _unusable() -> Iterator[Payload]:
    """Pictures that decode to nothing a model can use."""
    yield "png-1x500000", encode(Image.new("L", (1, 500_000)), "png"), "image/png"
    yield "png-500000x1", encode(Image.new("1", (500_000, 1)), "png"), "image/png"
    yield "jpeg-60000x1", encode(Image.new("L", (60_000, 1)), "jpeg"), "image/jpeg"
    yield "png-0x0", png(png_header(0, 0), chunk(b"IDAT", zlib.compress(b""))), "image/png"
    yield "tiff-float", encode(Image.new("F", (20, 20), 0.5), "tiff"), "image/tiff"
    yield "tiff-32-bit", encode(Image.new("I", (20, 20), 70_000), "tiff"), "image/tiff"


def _other_documents() -> Iterator[Payload]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.jpg", good_images()["jpeg"])
    yield "empty", b"", "image/jpeg"
    yield "empty-octets", b"", "application/octet-stream"
    yield "one-zero", b"\0", "image/png"
    yield "zeros", bytes(10_000), "image/png"
    yield "noise", random.Random(0).randbytes(10_000), "image/jpeg"
    yield "text", "größer als ein Bild: 漢字".encode(), "text/plain"
    yield "html", b"<!DOCTYPE html><html><body><img src='photo.jpg'></body></html>", "text/html"
    yield "html-as-jpeg", b"<html><title>404 Not Found</title></html>", "image/jpeg"
    yield "pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n", "application/pdf"
    yield "zip", archive.getvalue(), "application/zip"
    yield "zip-as-png", archive.getvalue(), "image/png"
    yield "gzip", gzip.compress(good_images()["jpeg"], mtime=0), "application/gzip"
    yield "pickle", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s.", "application/octet-stream"
    yield (
        "numpy",
        b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (3,)}",
        "application/octet-stream",
    )
    yield "executable", b"\x7fELF\x02\x01\x01" + bytes(60), "application/octet-stream"


def _json_documents() -> Iterator[Payload]:
    """JSON of every wrong shape, and things that are nearly JSON."""
    documents: list[Any] = [None, True, False, 0, -1.5, 1e300, "", "photo.jpg", [], {}, [[]], [None], [1, 2, 3], [{}]]
    documents += [{"data": None}, {"data": ""}, {"data": 7}, {"data": []}, {"data": {}}, {"data": "not base64 !"}]
    documents += [
        {"instances": None},
        {"instances": 3},
        {"instances": {}},
        {"instances": [None]},
        {"instances": [[[[]]]]},
    ]
    documents += [{"instances": [{"b64": 5}]}, {"instances": [{"b64": "%%%"}]}, {"instances": [{"b64": ""}]}]
    documents += [{"inputs": None}, {"inputs": {}}, {"inputs": [{}]}, {"inputs": [{"name": "x"}]}, {"image": "AAAA"}]
    documents += [{"inputs": [{"name": "x", "shape": [-1], "datatype": "UINT8", "data": []}]}, {"a" * 5000: "b"}]
    for number, document in enumerate(documents):
        yield f"json-{number:02}", json.dumps(document).encode(), "application/json"
    texts = (
        b"{",
        b"[",
        b'{"data":',
        b"{'data': 1}",
        b"NaN",
        b"\xff\xfe{",
        b'{"data": "\xff"}',
        b"[" * 20_000,
        b"\xef\xbb\xbf{}",
    )
    for number, text in enumerate(texts):
        yield f"nearly-json-{number}", text, "application/json"
