"""Mending a file in place: the smallest change, comments kept, the whole file or nothing written."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from marsmith.config.properties import ENCODING, parse_properties, render_properties

_WIDTH = 4096
# A list whose dashes stand under its key's first letter; anything else is printed with dashes indented by two.
_FLUSH_SEQUENCE = re.compile(r"^( *)[^\s#-][^\n]*:[ ]*\n\1- ", re.MULTILINE)


@dataclass(frozen=True)
class Fix:
    """One change of one file.

    Attributes:
        action: set a key's value (a missing key is added at the end of its mapping), rename a key, or remove a line.
        path: the keys that lead to the value; a key of a properties file alone.
        value: the new value, or the new name of the key.
        line: line of the entry, counted from 1; needed for properties, where a key may stand twice.
    """

    action: Literal["set", "rename", "remove"]
    path: tuple[str, ...]
    value: Any = None
    line: int = 0


def apply(file: Path, fixes: Iterable[Fix]) -> None:
    """Change ``file`` as the fixes say, whole or not at all.

    Raises:
        OSError: it cannot be read or written.
    """
    wanted: list[Fix] = []
    for fix in fixes:
        # A value may be a mapping, which has no hash.
        if fix not in wanted:
            wanted.append(fix)
    if file.suffix == ".properties":
        text = fix_properties(file.read_bytes().decode(ENCODING), wanted)
        _write(file, text.encode(ENCODING))
    else:
        _write(file, fix_yaml(file.read_text(encoding="utf-8"), wanted).encode())


def fix_properties(text: str, fixes: Iterable[Fix]) -> str:
    """Return the text with lines changed, removed, or added at the end; all other lines are kept byte for byte."""
    lines = re.split(r"(?<=\n)", text)
    starts = {entry.line: entry for entry in parse_properties(text)}
    added = []
    for fix in fixes:
        key = fix.path[-1]
        if fix.line == 0:
            added.append(render_properties({key: fix.value}))
            continue
        entry = starts[fix.line]
        first, last = fix.line - 1, _last_line(lines, fix.line - 1)
        content = {
            "set": {key: fix.value},
            "rename": {str(fix.value): entry.value},
            "remove": {},
        }[fix.action]
        ending = "\r\n" if lines[last].endswith("\r\n") else "\n"
        # Lines are replaced by as many, so that the numbers of later ones stay right.
        lines[first : last + 1] = [render_properties(content).replace("\n", ending), *[""] * (last - first)]
    body = "".join(lines)
    separator = "\n" if added and body and not body.endswith("\n") else ""
    return body + separator + "".join(added)


def fix_yaml(text: str, fixes: Iterable[Fix]) -> str:
    """Return the text with keys set or renamed; comments, quotes and the order of keys stay."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    if not _FLUSH_SEQUENCE.search(text):
        yaml.indent(mapping=2, sequence=4, offset=2)
    data = yaml.load(text)
    for fix in fixes:
        parent = _parent(data, fix.path)
        if fix.action == "set":
            _set(parent, fix.path[-1], DoubleQuotedScalarString(fix.value) if isinstance(fix.value, str) else fix.value)
        elif fix.action == "rename":
            _rename(parent, fix.path[-1], str(fix.value))
        else:
            del parent[fix.path[-1]]
    stream = StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _parent(data: Any, path: tuple[str, ...]) -> MutableMapping[str, Any]:
    for part in path[:-1]:
        data = data[int(part)] if isinstance(data, list) else data[part]
    if not isinstance(data, MutableMapping):
        raise TypeError(f"{'.'.join(path)} does not lie in a mapping")
    return data


def _set(parent: Any, key: str, value: Any) -> None:
    last = None if key in parent else next(reversed(parent), None)
    block = CommentedMap(value) if isinstance(value, Mapping) and value else None
    parent[key] = value if block is None else block
    # ruamel keeps the empty lines and comments behind a mapping with its last key.
    behind = parent.ca.items.get(last)
    if behind and behind[2] and behind[2].value.startswith("\n"):
        holder, end = (parent, key) if block is None else (block, next(reversed(block)))
        holder.ca.items[end] = parent.ca.items.pop(last)


def _rename(parent: Any, old: str, new: str) -> None:
    position = list(parent).index(old)
    comment = parent.ca.items.pop(old, None)
    value = parent.pop(old)
    parent.insert(position, new, value)
    if comment is not None:
        parent.ca.items[new] = comment


def _last_line(lines: list[str], first: int) -> int:
    """Return the index of the last natural line of the logical line that begins at ``first``."""
    last = first
    while last + 1 < len(lines) and _continues(lines[last]):
        last += 1
    return last


def _continues(line: str) -> bool:
    content = line.rstrip("\r\n")
    return (len(content) - len(content.rstrip("\\"))) % 2 == 1


def _write(file: Path, content: bytes) -> None:
    mode = file.stat().st_mode & 0o7777
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(file.resolve())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def grouped(fixes: Iterable[tuple[Path, Fix]]) -> Mapping[Path, list[Fix]]:
    """Return the fixes by file."""
    by_file: dict[Path, list[Fix]] = {}
    for file, fix in fixes:
        by_file.setdefault(file, []).append(fix)
    return by_file
