"""TorchServe's ``key_file.json``: a token for each role."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from marsmith.client.deadline import Deadline
from marsmith.errors import AuthorizationError, FormatError
from marsmith.json_reader import read_json

Role = Literal["inference", "management", "api"]
ROLES: tuple[Role, ...] = get_args(Role)
# Long enough for a request to arrive, and short enough not to take the token from other clients early.
MARGIN = timedelta(seconds=5)
# TorchServe creates the file first and fills it later. On a busy machine it may stay empty for a while.
READ_ATTEMPTS = 60
READ_PAUSE_S = 0.05

_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?Z")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
        value: text after ``Bearer`` in the Authorization header.
        expires: time of expiry; None for never.
    """

    value: str = field(repr=False)
    expires: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        """Return whether it has expired or is about to expire."""
        return self.expires is not None and now >= self.expires - MARGIN


@dataclass(frozen=True)
class KeyFile:
    """Content of a key file.

    Attributes:
        inference, management: the tokens of these APIs.
        api: the token that renews the others.
        warnings: security problems of the file.
    """

    inference: Token
    management: Token
    api: Token
    warnings: tuple[str, ...] = ()

    def of(self, role: Role) -> Token:
        """Return the token of ``role``."""
        return {"inference": self.inference, "management": self.management, "api": self.api}[role]


def parse_key_file(text: str, source: str = "key_file.json", warnings: tuple[str, ...] = ()) -> KeyFile:
    """Parse a key file.

    Raises:
        FormatError: the text is not JSON, or tokens or times are missing or malformed.
    """
    try:
        data = read_json(text)
        return KeyFile(
            inference=_parse_token(data["inference"]),
            management=_parse_token(data["management"]),
            api=Token(_word(data["API"]["key"])),
            warnings=warnings,
        )
    except KeyError as error:
        raise FormatError(source, [f"has no {error.args[0]!r}"]) from None
    except (ValueError, TypeError) as error:
        raise FormatError(source, [str(error)]) from None


def read_key_file(path: Path, deadline: Deadline | None = None) -> KeyFile:
    """Read a key file. A file that others can read gives a warning in the result.

    Raises:
        AuthorizationError: the file cannot be read.
        FormatError: the file is malformed for three seconds or until the deadline.
    """
    return _patiently(lambda: parse_key_file(_text(path), str(path), _unsafe(path)), deadline or Deadline(math.inf))


def _parse_token(data: Any) -> Token:
    return Token(_word(data["key"]), parse_instant(data["expiration time"]))


def _word(value: Any) -> str:
    # A key becomes part of a header, where a line break would start another header.
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError("a key must be a text without spaces")
    return value


def parse_instant(text: str) -> datetime:
    """Parse a time in the format of a Java Instant: UTC, with zero to nine digits after the second.

    Raises:
        ValueError: the text has another format.
    """
    match = _INSTANT.fullmatch(text)
    if not match:
        raise ValueError(f"not a time: {text!r}")
    minute, second, fraction = match.groups()
    whole = datetime.strptime(f"{minute}:{second or '00'}", "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return whole + timedelta(microseconds=int((fraction or "").ljust(9, "0")[:6]))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AuthorizationError(
            f"cannot read the tokens in {path}: {error.strerror}",
            tip="TorchServe writes key_file.json into the folder in which it was started",
        ) from None


def _unsafe(path: Path) -> tuple[str, ...]:
    mode = path.stat().st_mode & 0o777
    return (f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}",) if mode & 0o077 else ()


def _patiently(read: Callable[[], Result], deadline: Deadline) -> Result:
    for _ in range(READ_ATTEMPTS - 1):
        with suppress(FormatError):
            return read()
        if deadline.left_s <= READ_PAUSE_S:
            break
        time.sleep(READ_PAUSE_S)
    return read()
