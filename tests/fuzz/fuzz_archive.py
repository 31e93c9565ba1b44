"""Coverage-guided fuzzing of the archive reader with atheris; no part of the pytest run.

    pip install atheris
    PYTHONPATH=src python tests/fuzz/fuzz_archive.py corpus/ -max_total_time=600 -rss_limit_mb=1024 -timeout=20

Opening, verifying and unpacking any bytes may raise errors of marsmith, and nothing else.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["marsmith"]):
    # Those that are imported on first use must be instrumented too.
    import marsmith.archive.folder
    import marsmith.archive.tar_reader
    import marsmith.archive.verify
    import marsmith.archive.zip_reader  # noqa: F401
    from marsmith.archive import Archive, Manifest, Member
    from marsmith.archive.members import ReadLimits
    from marsmith.archive.signature import read_signature
    from marsmith.archive.verify import verify
    from marsmith.archive.write import ArchiveFormat, write_archive
    from marsmith.errors import MarsmithError

WORK = Path(tempfile.mkdtemp(prefix="marsmith-fuzz-"))
LIMITS = ReadLimits(members=200, total_bytes=1 << 24, ratio_from_bytes=1 << 20)


def fuzz(data: bytes) -> None:
    """Try one input: its first byte says what the rest is."""
    shape = SHAPES[data[0] % len(SHAPES)] if data else SHAPES[0]
    path = WORK / "input"
    path.write_bytes(shape(data[1:]))
    try:
        archive = Archive.open(path, limits=LIMITS)
        verify(archive, environment=False)
        archive.extract(WORK / "out")
    except MarsmithError:
        pass
    else:
        _remove(WORK / "out")
    with contextlib.suppress(MarsmithError):
        read_signature(path)
    assert {entry.name for entry in WORK.iterdir()} == {"input"}, "something was left behind or written outside"


def _raw(data: bytes) -> bytes:
    return data


def _tar(data: bytes) -> bytes:
    """Take the input as a tar; its header checksums are made right, or nothing behind them would ever be reached."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    return gzip.compress(bytes(blocks), 0)


def _texts(data: bytes) -> bytes:
    """Take the input as the texts of a zip that is otherwise right."""
    buffer = io.BytesIO()
    names = ("MAR-INF/MANIFEST.json", "MAR-INF/SHA256SUMS", "MAR-INF/examples/examples.json", "h.py")
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in zip(names, data.split(b"\xff"), strict=False):
            archive.writestr(name, text)
    return buffer.getvalue()


def _deflated(data: bytes) -> bytes:
    """Take the input as the compressed bytes of a zip's second member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        archive.writestr("h.py", data)
    content = bytearray(buffer.getvalue())
    second = content.index(b"PK\x03\x04", 4)
    directory = content.index(b"PK\x01\x02")
    directory = content.index(b"PK\x01\x02", directory + 4)
    for method_at in (second + 8, directory + 10):
        content[method_at : method_at + 2] = b"\x08\0"
    return bytes(content)


MANIFEST = '{"runtime": "python", "model": {"modelName": "m", "modelVersion": "1", "handler": "h.py"}}'
SHAPES = (_raw, _tar, _texts, _deflated)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def seeds(folder: Path) -> None:
    """Write small valid archives of every kind as a corpus to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(model_name="m", model_version="1", handler="h.py")
    members = [Member("h.py", b"def handle(data, context): return data\n" * 4), Member("é/x", b"")]
    kinds: list[tuple[ArchiveFormat, str]] = [("zip-store", "a.mar"), ("default", "b.mar"), ("tgz", "c.tar.gz")]
    for archive_format, name in kinds:
        write_archive(manifest, members, folder / name, archive_format=archive_format, force=True)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\0" + content)
        if name.endswith("gz"):
            (folder / "tar").write_bytes(b"\1" + gzip.decompress(content))
    texts = (MANIFEST.encode(), b"", b"[]", b"pass")
    (folder / "texts").write_bytes(b"\2" + b"\xff".join(texts))
    (folder / "deflated").write_bytes(b"\3" + bytes.fromhex("4b4c4a06000000ffff0300"))


if __name__ == "__main__":
    seeds(Path(sys.argv[1]))
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
