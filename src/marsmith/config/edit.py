"""Edit a file in place, with minimal changes: comments are kept, and the file is written atomically."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from marsmith import files
from marsmith.config.properties import ENCODING, parse_properties, render_properties, replace_entries

_WIDTH = 4096
# Indentation of a list: if its dashes are below the first letter of its key they stay there, else they are indented by
# two.
_FLUSH_SEQUENCE = re.compile(r"^( *)[^\s#-][^\n]*:[ ]*\n\1- ", re.MULTILINE)


@dataclass(frozen=True)
class Edit:
    """One change of one file.

    Attributes:
        action: set the value of a key (a missing key is appended to its mapping), rename a key, or remove a line.
        path: keys that lead to the value; a single key for properties files.
        value: new value, or new name of the key.
        line: line of the entry, counted from 1; required for properties, where a key may occur twice.
    """

    action: Literal["set", "rename", "remove"]
    path: tuple[str, ...]
    value: Any = None
    line: int = 0


def apply(file: Path, edits: Iterable[Edit]) -> None:
    """Apply edits to ``file``, atomically.

    Raises:
        OSError: the file cannot be read or written.
    """
    wanted: list[Edit] = []
    for edit in edits:
        # A value may be a mapping, which is not hashable.
        if edit not in wanted:
            wanted.append(edit)
    if file.suffix == ".properties":
        text = edit_properties(file.read_bytes().decode(ENCODING), wanted)
        files.write_atomically(file, text.encode(ENCODING))
    else:
        files.write_atomically(file, edit_yaml(file.read_text(encoding="utf-8"), wanted))


def edit_properties(text: str, edits: Iterable[Edit]) -> str:
    """Return the text with lines changed, removed or appended; all other lines are kept byte for byte."""
    starts = {entry.line: entry for entry in parse_properties(text)}
    added, changed = [], {}
    for edit in edits:
        key = edit.path[-1]
        if edit.line == 0:
            added.append(render_properties({key: edit.value}))
            continue
        changed[edit.line] = {
            "set": {key: edit.value},
            "rename": {str(edit.value): starts[edit.line].value},
            "remove": {},
        }[edit.action]
    body = replace_entries(text, changed)
    separator = "\n" if added and body and not body.endswith("\n") else ""
    return body + separator + "".join(added)


def edit_yaml(text: str, edits: Iterable[Edit]) -> str:
    """Return the text with keys set or renamed; comments, quotes and the order of keys are kept."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    if not _FLUSH_SEQUENCE.search(text):
        yaml.indent(mapping=2, sequence=4, offset=2)
    data = yaml.load(text)
    for edit in edits:
        parent = _parent(data, edit.path)
        if edit.action == "set":
            _set(
                parent,
                edit.path[-1],
                DoubleQuotedScalarString(edit.value) if isinstance(edit.value, str) else edit.value,
            )
        elif edit.action == "rename":
            _rename(parent, edit.path[-1], str(edit.value))
        else:
            del parent[edit.path[-1]]
    stream = StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _parent(data: Any, path: tuple[str, ...]) -> MutableMapping[str, Any]:
    for part in path[:-1]:
        data = data[int(part)] if isinstance(data, list) else data[part]
    if not isinstance(data, MutableMapping):
        raise TypeError(f"{'.'.join(path)} is not in a mapping")
    return data


def _set(parent: Any, key: str, value: Any) -> None:
    last = None if key in parent else next(reversed(parent), None)
    block = CommentedMap(value) if isinstance(value, Mapping) and value else None
    parent[key] = value if block is None else block
    # ruamel attaches empty lines and comments after a mapping to its last key.
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


def grouped(edits: Iterable[tuple[Path, Edit]]) -> Mapping[Path, list[Edit]]:
    """Group edits by file."""
    by_file: dict[Path, list[Edit]] = {}
    for file, edit in edits:
        by_file.setdefault(file, []).append(edit)
    return by_file
