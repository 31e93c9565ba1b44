"""Zip and tar files put together by hand, so that any field of them can lie."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marsmith.archive import Archive, Manifest, Member
from marsmith.archive.write import write_archive

MANIFEST = b'{"runtime": "python", "model": {"modelName": "m", "modelVersion": "1.0", "handler": "h.py"}}'
MANIFEST_NAME = "MAR-INF/MANIFEST.json"


@dataclass
class Entry:
    """One member; ``local`` and ``central`` override fields of one header, ``both`` those of both."""

    name: bytes | str
    content: bytes = b""
    deflate: bool = False
    packed: bytes | None = None
    both: dict[str, Any] = field(default_factory=dict)
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    before: bytes = b""

    def data(self) -> bytes:
        """Return the bytes that lie in the archive."""
        if self.packed is not None:
            return self.packed
        if not self.deflate:
            return self.content
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflater.compress(self.content) + deflater.flush()

    def fields(self) -> dict[str, Any]:
        """Return the true fields of both headers, with what ``both`` overrides."""
        raw = self.name if isinstance(self.name, bytes) else self.name.encode()
        return {
            "name": raw,
            "made": 3 << 8 | 20,
            "needed": 20,
            "flags": 0 if raw.isascii() else 0x800,
            "method": 8 if self.deflate else 0,
            "time": 0,
            "date": 0x21,
            "crc": zlib.crc32(self.content),
            "packed": len(self.data()),
            "size": len(self.content),
            "extra": b"",
            "comment": b"",
            "disk": 0,
            "internal": 0,
            "external": 0o100644 << 16,
            **self.both,
        }


def manifest_entry() -> Entry:
    """Return the entry that every archive needs."""
    return Entry(MANIFEST_NAME, MANIFEST)


def raw_zip(
    entries: Sequence[Entry], *, end: dict[str, Any] | None = None, tail: bytes = b"", gap: bytes = b""
) -> bytes:
    """Print a zip; ``gap`` goes before the central directory, ``tail`` behind everything."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        body += entry.before
        offset = len(body)
        body += _local({**entry.fields(), **entry.local}) + entry.data()
        directory += _central({"offset": offset, **entry.fields(), **entry.central})
    body += gap
    fields = {"disk": 0, "first": 0, "here": len(entries), "count": len(entries), "comment": b"", **(end or {})}
    values = (fields["disk"], fields["first"], fields["here"], fields["count"])
    place = (fields.get("length", len(directory)), fields.get("offset", len(body)))
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", *values, *place, len(fields["comment"])) + fields["comment"]
    return bytes(body + directory + fields.get("before", b"") + record + tail)


def _local(f: dict[str, Any]) -> bytes:
    fixed = (f["needed"], f["flags"], f["method"], f["time"], f["date"], f["crc"], f["packed"], f["size"])
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", *fixed, len(f["name"]), len(f["extra"])) + f["name"] + f["extra"]


def _central(f: dict[str, Any]) -> bytes:
    fixed = (f["made"], f["needed"], f["flags"], f["method"], f["time"], f["date"], f["crc"], f["packed"], f["size"])
    lengths = (len(f["name"]), len(f["extra"]), len(f["comment"]), f["disk"], f["internal"], f["external"], f["offset"])
    return struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *fixed, *lengths) + f["name"] + f["extra"] + f["comment"]


def raw_tar(headers: Sequence[bytes], *, end: bytes = bytes(1024)) -> bytes:
    """Print a gzipped tar from blocks that ``tar_member`` made."""
    return gzip.compress(b"".join(headers) + end, 1, mtime=0)


def tar_member(name: str | bytes, content: bytes = b"", *, kind: bytes = b"0", **override: bytes) -> bytes:
    """Print a tar header with a true checksum, and its content."""
    fields = {
        "name": (0, name if isinstance(name, bytes) else name.encode()),
        "mode": (100, b"0000644\0"),
        "size": (124, b"%011o\0" % len(content)),
        "mtime": (136, b"00000000000\0"),
        "kind": (156, kind),
        "link": (157, b""),
        "magic": (257, b"ustar\00000"),
        "prefix": (345, b""),
    }
    block = bytearray(512)
    for key, (offset, value) in fields.items():
        value = override.get(key, value)
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = override.get("checksum", b"%06o\0 " % sum(block))
    return bytes(block) + content + bytes(-len(content) % 512)


def ours(target: Path, **options: Any) -> Archive:
    """Build a small archive of ours."""
    manifest = Manifest(
        model_name="toy",
        model_version="1.0",
        handler="handler.py",
        serialized_file="model.pt",
        config_file="model-config.yaml",
        archiver_version="marsmith, for a test",
    )
    members = [
        Member("model.pt", bytes(range(256)) * 2),
        Member("handler.py", b"def handle(data, context):\n    return data\n"),
        Member("model-config.yaml", b"minWorkers: 1\nhandler:\n  top_k: 5\n"),
        Member("index_to_name.json", '{"0": "Löwe"}'.encode()),
        *options.pop("more", []),
    ]
    return written(manifest, members, target, **options)


def written(manifest: Manifest, members: Sequence[Member], target: Path, **options: Any) -> Archive:
    """Write an archive and open it."""
    write_archive(manifest, members, target, **options)
    return Archive.open(target)
