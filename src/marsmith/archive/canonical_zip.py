"""Canonical zip layout of marsmith: all bytes except the contents of the members are determined.

The headers are rendered again from names, sizes and CRCs, and compared with those in the file. If they are equal and
every content matches its digest, no byte of the file was changed. Deflated contents are an exception: the same content
may be compressed to different bytes. ``marsmith archive`` stores every member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from marsmith.archive import manifest, sums
from marsmith.archive.zip_layout import Header
from marsmith.archive.zip_writer import Entry, end_records


def zip_layout_problems(file: BinaryIO, size: int, entries: Sequence[Header]) -> list[str]:
    """Return where a zip differs from the canonical layout, with the member.

    Args:
        file: the zip; its structure has been checked.
        size: size of the file, in bytes.
        entries: its members, in order.
    """
    names = [entry.name for entry in entries]
    problems = []
    if names != canonical_order(names):
        problems.append(f"the members are not in order: {manifest.FILE_NAME}, then by name, then {sums.FILE_NAME}")
    problems += [
        f"member {name!r}: an entry for a folder, which marsmith never writes" for name in names if name[-1] == "/"
    ]
    for entry in entries:
        expected = _printed(entry).local()
        file.seek(entry.offset)
        # The structure has no gaps, so a header of another length shifts the content and is detected here.
        if file.read(entry.data_offset - entry.offset) != expected:
            problems.append(f"member {entry.name!r}: its local header is not the one that marsmith writes")
        if entry.descriptor_size:
            problems.append(f"member {entry.name!r}: it was streamed, with its sizes after its content")
    return problems + _end_problems(file, size, entries)


def canonical_order(names: Sequence[str]) -> list[str]:
    """Return names in canonical order."""
    return sorted(names, key=lambda name: (name != manifest.FILE_NAME, name == sums.FILE_NAME, name))


def _end_problems(file: BinaryIO, size: int, entries: Sequence[Header]) -> list[str]:
    """Compare the central directory, entry by entry, and the end records."""
    position = start = entries[-1].end if entries else 0
    for entry in entries:
        expected = _printed(entry).central()
        file.seek(position)
        if file.read(len(expected)) != expected:
            # After an entry of another length everything is shifted; one message is enough.
            return [f"member {entry.name!r}: its entry in the central directory is not the one that marsmith writes"]
        position += len(expected)
    file.seek(position)
    same = file.read(size - position) == end_records(start, position, len(entries))
    return [] if same else ["the end record is not the one that marsmith writes"]


def _printed(entry: Header) -> Entry:
    """Return an entry as the writer would write it."""
    return Entry(entry.name.encode(), entry.offset, entry.method, entry.crc, entry.compressed_size, entry.size)
