"""TorchServe's ``key_file.json``: a token for each role, and how to get a new one when it expires.

A new token makes the one before it invalid at once, for everybody. So a token is renewed only when it has expired or is
about to, by one process at a time, and whoever is refused reads the file again before anything else.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from marsmith import files
from marsmith.client.deadline import RENEWING, Deadline
from marsmith.client.failures import failure
from marsmith.client.http import HttpRequest, Transport, missed
from marsmith.errors import AuthorizationError, ConnectionFailedError, DeadlineError, FormatError, UsageError
from marsmith.json_reader import read_json
from marsmith.run_state import RunState

Role = Literal["inference", "management", "api"]
ROLES: tuple[Role, ...] = get_args(Role)
# Long enough for a request to arrive, short enough to leave others their token until the end.
MARGIN = timedelta(seconds=5)
RENEWAL_DEADLINE_S = 10.0
# TorchServe creates the file first and fills it later: a reader may meet it empty, on a busy machine for long.
READ_ATTEMPTS = 60
READ_PAUSE_S = 0.05
# It changes a token first and writes the file then, on a busy machine a while later.
REFUSAL_ATTEMPTS = 20
# How often a lock that another process holds is tried again.
LOCK_PAUSE_S = 0.02

_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?Z")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
        value: what goes into the Authorization header, after ``Bearer``.
        expires: when it stops being accepted; None for never.
    """

    value: str = field(repr=False)
    expires: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        """Tell whether it has expired, or is about to."""
        return self.expires is not None and now >= self.expires - MARGIN


@dataclass(frozen=True)
class KeyFile:
    """What a key file holds.

    Attributes:
        inference, management: the tokens of these APIs.
        api: the token that gets new ones of the others.
        warnings: what is unsafe about the file.
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
        FormatError: not JSON, or tokens or times are missing or malformed.
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
    """Read a key file; that others can read it too is a warning in the result.

    Raises:
        AuthorizationError: it cannot be read.
        FormatError: it is malformed, and stays so for three seconds or until the deadline.
    """
    return _patiently(lambda: parse_key_file(_text(path), str(path), _unsafe(path)), deadline or Deadline(math.inf))


class TokenSource:
    """The tokens of one server, read from its key file and renewed when due; may be used by several threads."""

    def __init__(self, key_file: Path, transport: Transport, management: str | None) -> None:
        """Create a source.

        Args:
            key_file: TorchServe's ``key_file.json``.
            transport: what asks for a new token.
            management: base URL of the management API; None where tokens cannot be renewed.
        """
        self._path = key_file
        self._transport = transport
        self._management = management
        self._known: KeyFile | None = None
        self._lock = threading.Lock()

    def get(self, role: Role, deadline: Deadline | None = None) -> str:
        """Return a token of ``role`` that is good now.

        Raises:
            AuthorizationError: the key file cannot be read, or the server gives no new token.
            DeadlineError: there was none in time; None: within ten seconds.
            ClientError: the management API does not answer.
        """
        late = deadline or Deadline(RENEWAL_DEADLINE_S)
        with self._alone(late):
            known = self._known or read_key_file(self._path, late)
            if known.of(role).is_due(_now()):
                known = self._renewed(role, late)
            self._known = known
            return known.of(role).value

    def known(self, role: Role) -> str | None:
        """Return a token that is good now, if that takes neither a file nor the server; else None."""
        known = self._known
        return None if known is None or known.of(role).is_due(_now()) else known.of(role).value

    def after_refusal(self, role: Role, refused: str, deadline: Deadline | None = None) -> str | None:
        """Return another token of ``role`` than the one that was refused; None where there is none.

        The server changes a token first and writes the file then: a file that still says the old one is read again.
        """
        late = deadline or Deadline(RENEWAL_DEADLINE_S)
        for attempt in range(REFUSAL_ATTEMPTS):
            if attempt:
                time.sleep(min(READ_PAUSE_S, late.left_s))
            with self._alone(late):
                # Somebody else may have read it already, in another thread.
                if self._known is not None and self._known.of(role).value == refused:
                    self._known = None
            token = self.get(role, late)
            if token != refused:
                return token
        return None

    def rotate(self, role: Role, deadline: Deadline | None = None) -> str:
        """Make the token of ``role`` invalid, and return the one that takes its place.

        Clients of ours read the key file again when they are refused; others must be told.

        Raises:
            UsageError: the role is ``api``, whose token TorchServe makes at its start only.
            AuthorizationError: the key file cannot be read, or the server gives no new token.
            DeadlineError: there was none in time; None: within ten seconds.
        """
        if role == "api":
            raise UsageError("TorchServe makes a new api token at its start only", tip="marsmith stop, marsmith serve")
        late = deadline or Deadline(RENEWAL_DEADLINE_S)
        with self._alone(late), self._held(late):
            known = read_key_file(self._path, late)
            self._ask_for_new(role, known.api.value, late)
            self._known = read_key_file(self._path, late)
            return self._known.of(role).value

    def _renewed(self, role: Role, deadline: Deadline) -> KeyFile:
        with self._held(deadline):
            # Another process may have been quicker.
            known = read_key_file(self._path, deadline)
            if not known.of(role).is_due(_now()):
                return known
            self._ask_for_new(role, known.api.value, deadline)
            return read_key_file(self._path, deadline)

    def _ask_for_new(self, role: Role, api_token: str, deadline: Deadline) -> None:
        if self._management is None:
            raise AuthorizationError(
                f"the {role} token in {self._path} has expired, and without the address of the management API there is "
                "no new one"
            )
        request = HttpRequest("GET", self._management, ("token",), {"type": role})
        try:
            left_s = min(RENEWAL_DEADLINE_S, deadline.left_s)
            reply = self._transport.send(request, token=api_token, deadline_s=left_s)
        except DeadlineError as error:
            raise missed(error.address, left_s, RENEWING) from None
        refusal = failure(reply, f"a new {role} token")
        if refusal:
            raise AuthorizationError(
                f"the server gave no new {role} token for the API token in {self._path}",
                tip="the file may be of another server, or of one that was restarted since",
            ) from refusal

    # Both locks are always taken in this order, so that no two can wait for each other.

    @contextmanager
    def _alone(self, deadline: Deadline) -> Iterator[None]:
        """Keep other threads from changing what is known."""
        if not self._lock.acquire(timeout=min(deadline.left_s, threading.TIMEOUT_MAX)):
            raise self._too_late(deadline)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _held(self, deadline: Deadline) -> Iterator[None]:
        """Keep other processes from renewing at the same time."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            # It was there when the token was read, and goes when a server ends.
            gone = f"no server runs: {self._path} is gone"
            raise ConnectionFailedError(gone, refused=True, tip="marsmith serve") from None
        with file:
            while not files.try_lock(file.fileno()):
                if deadline.left_s <= 0:
                    raise self._too_late(deadline)
                time.sleep(min(LOCK_PAUSE_S, deadline.left_s))
            yield

    def _too_late(self, deadline: Deadline) -> DeadlineError:
        return missed(self._management or str(self._path), deadline.seconds, "waiting for others who renew the token")


@dataclass(frozen=True)
class TokenAccess:
    """Where the tokens of one server come from.

    Attributes:
        key_file: TorchServe's ``key_file.json``.
        management: base URL of the management API; None: tokens cannot be renewed.
        ca_file: certificates to trust there, in PEM; None: the public ones.
    """

    key_file: Path
    management: str | None
    ca_file: Path | None = None

    @classmethod
    def of(cls, state: RunState) -> TokenAccess | None:
        """Return that of a running server; None where it asks for no tokens."""
        return cls(state.key_file, state.management, state.ca_file) if state.tokens else None

    @contextmanager
    def opened(self) -> Iterator[TokenSource]:
        """Give the tokens, as long as the context lasts."""
        transport = Transport(self.ca_file)
        try:
            yield TokenSource(self.key_file, transport, self.management)
        finally:
            transport.close()


def token(source: RunState | Path, role: Role, *, management: str | None = None, rotate: bool = False) -> str:
    """Return a token of ``role`` that is good now.

    Args:
        source: the running server, or its key file.
        role: which API it is for.
        management: base URL of the management API, where ``source`` is a key file; None: tokens cannot be renewed.
        rotate: make the one that is good now invalid first.

    Raises:
        AuthorizationError: the server asks for no token, the key file cannot be read, or there is no new token.
        UsageError: the api token cannot be rotated.
    """
    access = TokenAccess.of(source) if isinstance(source, RunState) else TokenAccess(source, management)
    if access is None:
        raise AuthorizationError("the server asks for no token", tip="call it without an Authorization header")
    with access.opened() as tokens:
        return tokens.rotate(role) if rotate else tokens.get(role)


def _parse_token(data: Any) -> Token:
    return Token(_word(data["key"]), parse_instant(data["expiration time"]))


def _word(value: Any) -> str:
    # It becomes part of a header: a line break in it would begin another.
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError("a key must be a text without spaces")
    return value


def parse_instant(text: str) -> datetime:
    """Parse a time as Java prints an Instant: UTC, with none to nine digits of a second.

    Raises:
        ValueError: it is not one.
    """
    match = _INSTANT.fullmatch(text)
    if not match:
        raise ValueError(f"not a time: {text!r}")
    minute, second, fraction = match.groups()
    whole = datetime.strptime(f"{minute}:{second or '00'}", "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return whole + timedelta(microseconds=int((fraction or "").ljust(9, "0")[:6]))


def _now() -> datetime:
    return datetime.now(UTC)


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
