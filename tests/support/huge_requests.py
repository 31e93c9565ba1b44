"""Bodies of the largest allowed size that hold as much as a body can: what each costs to open, measured in a process.

Run as a program, it prints JSON: for each body, or for those whose names it is given, its status and the memory, in
MiB, that opening and decoding it took.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

SIZE = 16 * 1024 * 1024
JSON_TYPE = "application/json"
Headers = Mapping[str, Any]
Make = Callable[[], "tuple[bytes, Headers] | None"]


def filled(unit: str | bytes, before: str | bytes = "[", after: str | bytes = "]", size: int = 0) -> bytes:
    """Return ``unit`` as often as ``size`` bytes have room for it, without its last character if that is a comma."""
    unit, before, after = (part if isinstance(part, bytes) else part.encode() for part in (unit, before, after))
    count = ((size or SIZE) - len(before) - len(after)) // len(unit)
    return before + (unit * count)[: -1 if unit.endswith(b",") else None] + after


def distinct_keys(size: int = 0) -> bytes:
    return ("{" + ",".join(f'"{number:x}":0' for number in range((size or SIZE) // 11)) + "}").encode()


def safetensors_header(count: int) -> bytes:
    """A file of 16 MB whose ``count`` tensors all lie over the same bytes."""
    room = SIZE - 8 - 100 * count
    entry = {"dtype": "U8", "shape": [room], "data_offsets": [0, room]}
    header = json.dumps({f"t{number}": entry for number in range(count)}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(room)


def v2_elements() -> tuple[bytes, Headers]:
    one = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": SIZE - 1024}}
    head = json.dumps({"inputs": [one]}).encode()
    return head + bytes(SIZE - 1024), {"Inference-Header-Content-Length": str(len(head))}


def largest_picture(kind: str, mode: str, *, height: int = 3124, **options: Any) -> bytes:
    """A picture of 4,000 x ``height`` pixels, in bands of colours: few bytes, and as many pixels as are decoded."""
    from PIL import Image

    out = BytesIO()
    Image.linear_gradient("L").convert(mode).resize((4000, height)).save(out, kind, **options)
    return out.getvalue()


def picture_with(kind: str, place: int, piece: bytes) -> bytes:
    from PIL import Image

    stream = BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return filled(piece, stream.getvalue()[:place], stream.getvalue()[place:])


def gif_with(piece: bytes) -> bytes:
    palette = 6
    return filled(piece, b"GIF89a\1\0\1\0\x80\0\0" + bytes(palette), b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;")


def png_chunk(kind: bytes) -> bytes:
    return bytes(4) + kind + struct.pack(">I", zlib.crc32(kind))


def texts_of_all_characters() -> list[str]:
    every = "".join(chr(code) for code in range(0x100, 0x90000) if not 0xD800 <= code < 0xE000)
    return [every[start : start + 1900] for start in range(0, 486_400, 1900)]


EMOJI = "\N{GRINNING FACE}"
# The longest that a handler takes, of marks that Unicode wants to be sorted.
LONG_TEXT = '"a' + "\u0300\u0316" * 49_999 + '",'
# In JSON, whatever envelope it is taken for.
JSON_BODIES: dict[str, Callable[[int], bytes]] = {
    "empty texts": lambda size: filled('"",', size=size),
    "short texts": lambda size: filled('"ab",', size=size),
    "texts beyond the BMP": lambda size: filled(f'"{EMOJI}",', size=size),
    "escapes": lambda size: filled('"\\"",', size=size),
    "empty lists": lambda size: filled("[],", size=size),
    "lists of one": lambda size: filled("[999],", size=size),
    "empty objects": lambda size: filled("{},", size=size),
    "objects of one": lambda size: filled('{"a":999},', size=size),
    "keys": distinct_keys,
    "the same key": lambda size: filled('"a":0,', "{", "}", size=size),
    "small numbers": lambda size: filled("0,", size=size),
    "decimals": lambda size: filled("0.1234567890123456,", size=size),
    "nulls": lambda size: filled("null,", size=size),
    "one number": lambda size: filled("1", "[", "]", size=size),
    "one decimal": lambda size: filled("1", "[0.", "]", size=size),
    "long numbers": lambda size: filled("9" * 4000 + ",", "[", "]", size=size),
    "depth": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "depth of objects": lambda size: filled('{"data":', "", "", size=size),
    "instances": lambda size: filled('"",', '{"instances":[', "]}", size=size),
    "instances of tensors": lambda size: filled("[1],", '{"instances":[', "]}", size=size),
    "instances in base64": lambda size: filled('{"b64":""},', '{"instances":[', "]}", size=size),
    "v2 elements": lambda size: filled(
        '"",', '{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":[', "]}]}", size=size
    ),
    "v2 inputs": lambda size: filled('{"datatype":"BYTES","data":[""]},', '{"inputs":[', "]}", size=size),
    "v2 shape": lambda size: filled("9,", '{"inputs":[{"datatype":"FP32","data":[1],"shape":[', "]}]}", size=size),
    "v2 name": lambda size: filled(
        "x", '{"inputs":[{"datatype":"BYTES","data":["' + '","' * 200 + '"],"name":"', '"}]}', size=size
    ),
    "v2 datatype": lambda size: filled("x", '{"inputs":[{"data":[1],"datatype":"', '"}]}', size=size),
    "v2 id": lambda size: filled("x", '{"inputs":[{"data":["YQ=="],"datatype":"BYTES"}],"id":"', '"}', size=size),
    "commas in a text": lambda size: filled(",", '["', '"]', size=size),
    "one text beyond the BMP": lambda size: filled("a", '"\\n' + EMOJI, '"', size=size),
    "base64 with spaces": lambda size: filled("AA ", '{"b64":"', '"}', size=size),
    "no end": lambda size: filled('["", ', size=size),
    "long texts": lambda size: filled(LONG_TEXT, size=size),
    "long texts of words": lambda size: filled('"' + "ab " * 33_000 + '",', size=size),
    "instances of long texts": lambda size: filled(LONG_TEXT, '{"instances":[', "]}", size=size),
    "v2 long texts": lambda size: filled(
        LONG_TEXT, '{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":[', "]}]}", size=size
    ),
}
# Other bodies, each with its content type.
OTHER_BODIES: dict[str, Callable[[], tuple[bytes, str]]] = {
    "PNG of the most pixels": lambda: (largest_picture("PNG", "RGBA"), "image/png"),
    "WebP of the most pixels": lambda: (largest_picture("WEBP", "RGBA"), "image/webp"),
    "progressive JPEG of the most pixels": lambda: (largest_picture("JPEG", "RGB", progressive=True), "image/jpeg"),
    "PNG of more pixels": lambda: (largest_picture("PNG", "RGB", height=3200), "image/png"),
    "PNG chunks": lambda: (picture_with("PNG", 33, png_chunk(b"abCd")), "image/png"),
    "JPEG segments": lambda: (picture_with("JPEG", 2, b"\xff\xe5\0\2"), "image/jpeg"),
    "JPEG filling": lambda: (picture_with("JPEG", 2, b"\xff"), "image/jpeg"),
    "GIF comments": lambda: (gif_with(b"!\xfe\1a\0"), "image/gif"),
    "safetensors over each other": lambda: (safetensors_header(500), "application/x-safetensors"),
    "safetensors header": lambda: (struct.pack("<Q", SIZE - 8) + filled("[],")[:-8], "application/x-safetensors"),
    "texts of marks, as many as are read": lambda: (filled(LONG_TEXT, size=5 * len(LONG_TEXT.encode()) + 2), JSON_TYPE),
    "texts of all characters, as many as are read": lambda: (json.dumps(texts_of_all_characters()).encode(), JSON_TYPE),
    "text": lambda: (filled(EMOJI, "", ""), "text/plain"),
}


def largest_allowed(make: Callable[[int], bytes]) -> bytes | None:
    """Return about the longest of the bodies that ``make`` gives which is parsed; None if that is the full one."""
    from marsmith_handler.bounded_json import MAX_VALUES, holds_at_most

    sample = make(20_000).decode()
    weight = next(count for count in range(1, 40_000) if holds_at_most(sample, count))
    size = int(0.98 * MAX_VALUES * 20_000 / weight)
    return make(size) if size < SIZE else None


def requests_of_all_kinds() -> dict[str, Make]:
    """Return every body with the headers that it is sent with."""

    def typed(made: bytes | None, kind: str) -> tuple[bytes, Headers] | None:
        return None if made is None else (made, {"body": {"content-type": kind}})

    def in_json(name: str, make: Callable[[int], bytes]) -> dict[str, Make]:
        return {
            name: lambda: typed(make(SIZE), JSON_TYPE),
            f"{name}, as many as are parsed": lambda: typed(largest_allowed(make), JSON_TYPE),
        }

    found: dict[str, Make] = {"v2 binary elements": v2_elements}
    for name, make in JSON_BODIES.items():
        found |= in_json(name, make)
    return found | {name: lambda make=make: typed(*make()) for name, make in OTHER_BODIES.items()}


def measured(make: Make, answer: Callable[[bytearray, Headers], Any]) -> dict[str, Any] | None:
    """Return what ``answer`` gave, and the processor's seconds and the MiB that it took, in a process of its own.

    Another process makes the body: memory that was used before, and is free again, would hide what is used now.
    """
    made = _in_child(make)
    if made is None:
        return None
    body, headers = made

    def work() -> dict[str, Any]:
        body_of_torchserve = bytearray(body)
        Path("/proc/self/clear_refs").write_text("5")
        before, began = _status("VmRSS"), time.process_time()
        answered = answer(body_of_torchserve, headers)
        return {
            "codes": answered,
            "seconds": time.process_time() - began,
            "mib": (_status("VmHWM") - before) / 1024,
        }

    told: dict[str, Any] = _in_child(work)
    return told


def _in_child(work: Callable[[], Any]) -> Any:
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                pickle.dump(work(), file)
                file.flush()
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert status == 0, "the child failed"
        file.seek(0)
        return pickle.load(file)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def handlers() -> list[Any]:
    """Return our handlers for images, sounds, texts and tensors, without their models."""
    from image_classifier_handler import ImageClassifierHandler
    from marsmith_handler.text.requests import TextLimits
    from marsmith_handler.text.word_pieces import WordPieces
    from tensor_handler import TensorHandler
    from text_classifier_handler import TextClassifierHandler
    from text_embedding_handler import TextEmbeddingHandler
    from voice_activity_handler import VoiceActivityHandler

    images, sounds, tensors = ImageClassifierHandler(), VoiceActivityHandler(), TensorHandler()
    images.decoding, images.max_request_pixels = {"resize": 8, "crop": (8, 8), "max_pixels": None}, None
    sounds.max_duration_s, sounds.max_request_duration_s = 60.0, 300.0
    tensors.inputs, tensors.dtype, tensors.shape = [], None, None
    classifier, embedder = TextClassifierHandler(), TextEmbeddingHandler()
    classifier.limits = embedder.limits = TextLimits.of({})
    classifier.vocabulary, classifier.unknown, classifier.ngrams = {}, 0, 2
    pieces = {piece: number for number, piece in enumerate(["[CLS]", "[SEP]", "[UNK]", "a", "##a"])}
    embedder.pieces = WordPieces(pieces, max_tokens=256)
    return [images, sounds, tensors, classifier, embedder]


def main(names: list[str]) -> None:
    """Open each body that is named, or all of them, and let each kind of handler decode what is in it."""
    from marsmith_handler.envelope import open_envelope
    from marsmith_handler.errors import ItemError

    made = handlers()

    def answer(body: bytearray, headers: Headers) -> list[int]:
        try:
            requests = open_envelope({"body": body}, headers).requests
        except ItemError as error:
            return [error.code]
        return [code_of(handler, requests) for handler in made]

    def code_of(handler: Any, requests: tuple[Any, ...]) -> int:
        try:
            if len(requests) > 1:
                handler.check_together(requests)
            for request in requests:
                handler.decode(request)
        except ItemError as error:
            return error.code
        return 200

    kinds = requests_of_all_kinds()
    told = {name: measured(kinds[name], answer) for name in names or kinds}
    json.dump({name: cost for name, cost in told.items() if cost}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
