"""A small model to archive: its members and its manifest, and the same for a process of its own."""

from __future__ import annotations

from pathlib import Path

from marsmith.archive import Manifest, Member
from support.projects import REPOSITORY

HANDLER = b"def handle(data, context):\n    return [bytes(row['body']) for row in data or []]\n"
# No deflate makes it smaller.
WEIGHTS = bytes(i * i * 2_654_435_761 >> 16 & 0xFF for i in range(50_000))
MANIFEST = Manifest(
    model_name="toy",
    model_version="1.0",
    handler="toy_handler.py",
    serialized_file="model.pt",
    archiver_version="marsmith",
)
CONTENTS: dict[str, bytes] = {
    "model.pt": WEIGHTS,
    "toy_handler.py": HANDLER,
    "index_to_name.json": b'{"0": "cat", "1": "dog"}' * 40,
    "empty.txt": b"",
    "vocab/caf\u00e9.txt": "caf\u00e9\n".encode() * 50,
}
SOURCE_FOLDER = REPOSITORY / "src"

# argv: folder with the files, target, archive format, "force" or "".
BUILD = """
import sys
from pathlib import Path
from marsmith.archive import Member
from marsmith.archive import write_archive
from marsmith.archive import Manifest
folder, target = Path(sys.argv[1]), Path(sys.argv[2])
manifest = Manifest("toy", "1.0", "toy_handler.py", serialized_file="model.pt", archiver_version="marsmith")
files = [path for path in folder.rglob("*") if path.is_file()]
members = [Member(path.relative_to(folder).as_posix(), path) for path in files]
print(write_archive(manifest, members, target, archive_format=sys.argv[3], force=bool(sys.argv[4:])))
"""


def members(contents: dict[str, bytes] = CONTENTS) -> list[Member]:
    """Give the members, their contents in memory."""
    return [Member(name, content) for name, content in contents.items()]


def write_files(folder: Path, contents: dict[str, bytes] = CONTENTS) -> list[Member]:
    """Write the files into a folder, in their order, and give the members that read them."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [Member(name, folder / name) for name in contents]


def listing(folder: Path) -> dict[str, bytes]:
    """Give every file below a folder, hidden ones too, with its content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
