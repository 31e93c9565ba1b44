"""Replies of models in commands: shown or saved as values, text or bytes."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from marsmith.cli.output import note, print_json, print_table, printable
from marsmith.errors import MarsmithError, UsageError
from marsmith.files import write_atomically
from marsmith.inputs import guess_content_type, suffix_of
from marsmith.names import encodable

STDOUT = "-"
_TEXTS = frozenset(
    {
        "application/json",
        "application/x-ndjson",
        "application/xml",
        "application/yaml",
        "application/javascript",
        "application/x-www-form-urlencoded",
    }
)


@dataclass(frozen=True)
class Body:
    """The body of a reply.

    Attributes:
        content: bytes of the body.
        content_type: content type from the server; empty if it sent none, as over gRPC: then it is guessed from the
            bytes.
    """

    content: bytes
    content_type: str = ""

    def __str__(self) -> str:
        """Return a description."""
        return f"{len(self.content)} bytes of {self._kind() or guess_content_type('', self.content)}"

    @property
    def suffix(self) -> str:
        """Suffix of a file with this content."""
        kind = self._kind() or ("application/json" if self.has_value else guess_content_type("", self.content))
        return suffix_of(kind) or (".txt" if self.text() is not None else ".bin")

    @property
    def has_value(self) -> bool:
        """Whether it is JSON."""
        return self._value() is not _NONE

    def value(self) -> Any:
        """Return the JSON value, else the text; None if it is neither."""
        value = self._value()
        return self.text() if value is _NONE else value

    def text(self) -> str | None:
        """Return the text, in the charset of the content type; None for bytes."""
        kind = self._kind()
        if kind and not (kind.startswith("text/") or kind in _TEXTS or kind.endswith(("+json", "+xml"))):
            return None
        try:
            text = self.content.decode(self._message().get_content_charset("utf-8"))
        except (UnicodeDecodeError, LookupError):
            return None
        # Bytes that are valid UTF-8 by chance contain characters that no text has.
        return None if not kind and any(c < " " and c not in "\t\n\r\f" for c in text) else text

    def record(self, name: str = "reply") -> dict[str, Any]:
        """Return it for JSON: a value or text under ``name``, bytes in base64 under ``<name>_base64``."""
        value = self.value()
        if value is None and not self.has_value:
            return {f"{name}_base64": base64.b64encode(self.content).decode()}
        return {name: value}

    def _kind(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()

    def _message(self) -> Message:
        message = Message()
        message["Content-Type"] = " ".join(self.content_type.split())
        return message

    def _value(self) -> Any:
        kind = self._kind()
        if kind and kind != "application/json" and not kind.endswith("+json"):
            return _NONE
        try:
            # Python's parser also accepts NaN, which is not valid JSON.
            return json.loads(self.content, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return _NONE


_NONE = object()


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


# Showing ------------------------------------------------------------------------------------------------------------


def show(body: Body, *, alone: bool = True, laid_out: bool = True) -> bool:
    """Print a reply on stdout; return whether it could be shown.

    A single reply to a file or a pipe is written byte for byte, unless it is JSON to be formatted. A terminal, and the
    blocks of several replies, get only text.
    """
    if laid_out and body.has_value:
        _print_value(body.value())
        return True
    if alone and not sys.stdout.isatty():
        write_raw(body.content)
        return True
    text = body.text()
    if text is None:
        note(f"the reply is {body}, which a terminal cannot show: -o {'FILE' if alone else 'FOLDER'} saves it")
        return False
    _print_text(text)
    return True


def _print_text(text: str) -> None:
    """Print lines; the text of a model must not control a terminal."""
    lines = text.splitlines()
    if sys.stdout.isatty():
        lines = ["\t".join(map(printable, line.split("\t"))) for line in lines]
    print("\n".join(map(encodable, lines)))


def write_raw(content: bytes) -> None:
    """Write bytes to stdout unchanged."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _print_value(value: Any) -> None:
    if isinstance(value, dict) and value and all(_is_number(item) for item in value.values()):
        rows = [(printable(label), f"{number:.4f}") for label, number in value.items()]
        print_table(("LABEL", "PROBABILITY"), rows)
    elif isinstance(value, str):
        _print_text(value)
    else:
        print_json(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Keeping ------------------------------------------------------------------------------------------------------------


def check_output(output: str | None, inputs: int, *, as_json: bool) -> None:
    """Check, before anything is sent, that replies can be written to ``-o``.

    Raises:
        UsageError: they cannot be written.
    """
    if output is None:
        return
    if as_json:
        raise UsageError("--json includes the bytes: leave out -o", tip="or leave out --json")
    if output == STDOUT:
        if inputs > 1:
            raise UsageError(f"{inputs} replies cannot go to stdout as one", tip="-o FOLDER saves each as a file")
        return
    path = Path(output)
    if inputs > 1 and path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, and there are {inputs} replies", tip="-o FOLDER saves each as a file")
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", tip=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"the folder {folder} cannot be written to")


def keep(output: str, replies: Sequence[tuple[str, Body | None]]) -> None:
    """Write replies to ``-o``, byte for byte, each atomically.

    Args:
        output: a file for a single reply, ``-`` for stdout, or a folder, which is created for several replies.
        replies: names of the inputs with their replies; None if there is none.

    Raises:
        MarsmithError: a reply cannot be written.
    """
    if output == STDOUT:
        for _, body in replies:
            write_raw(body.content if body else b"")
        return
    path = Path(output)
    in_folder = len(replies) > 1 or path.is_dir() or output.endswith("/")
    taken: set[str] = set()
    for name, body in replies:
        if body is None:
            continue
        target = path / _free_name(Path(name).stem or "reply", body.suffix, taken) if in_folder else path
        _write(target, body.content)
        note(f"{target}: {body}")


def _free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """Return a unique name: inputs from several folders may have the same name."""
    name, number = f"{stem}{suffix}", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name)
    return name


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically; a device cannot be replaced, so it is written to directly."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            write_atomically(path, content)
    except OSError as error:
        raise MarsmithError(f"cannot write {path}: {error.strerror}") from None
