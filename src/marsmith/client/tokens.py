"""The tokens of a server, and their renewal.

A new token makes the previous one invalid at once, for every client. A token is therefore renewed only when it has
expired or is about to expire, by one process at a time. A client whose token is refused reads the file again first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from marsmith import files
from marsmith.client.deadline import RENEWING, Deadline
from marsmith.client.failures import failure
from marsmith.client.http import HttpRequest, Transport, missed
from marsmith.client.key_file import READ_PAUSE_S, KeyFile, Role, read_key_file
from marsmith.errors import AuthorizationError, ConnectionFailedError, DeadlineError, UsageError
from marsmith.run_state import RunState

RENEWAL_DEADLINE_S = 10.0
# TorchServe changes a token first and then writes the file, on a busy machine a while later.
REFUSAL_ATTEMPTS = 20
# Interval between attempts to take a lock of another process, in seconds.
LOCK_PAUSE_S = 0.02


class TokenSource:
    """The tokens of one server, read from its key file and renewed when they are due.

    May be used by several threads.
    """

    def __init__(self, key_file: Path, transport: Transport, management: str | None) -> None:
        """Create a source.

        Args:
            key_file: TorchServe's ``key_file.json``.
            transport: transport of the requests for new tokens.
            management: base URL of the management API; None if tokens cannot be renewed.
        """
        self._path = key_file
        self._transport = transport
        self._management = management
        self._known: KeyFile | None = None
        self._lock = threading.Lock()

    def get(self, role: Role, deadline: Deadline | None = None) -> str:
        """Return a valid token of ``role``.

        Raises:
            AuthorizationError: the key file cannot be read, or the server does not return a new token.
            DeadlineError: no token in time; None means ten seconds.
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
        """Return a valid token if that needs neither a file nor the server; else None."""
        known = self._known
        return None if known is None or known.of(role).is_due(_now()) else known.of(role).value

    def after_refusal(self, role: Role, refused: str, deadline: Deadline | None = None) -> str | None:
        """Return another token of ``role`` than the refused one; None if there is none.

        The server changes a token first and then writes the file, so a file with the old token is read again.
        """
        late = deadline or Deadline(RENEWAL_DEADLINE_S)
        for attempt in range(REFUSAL_ATTEMPTS):
            if attempt:
                time.sleep(min(READ_PAUSE_S, late.left_s))
            with self._alone(late):
                # Another thread may have read it already.
                if self._known is not None and self._known.of(role).value == refused:
                    self._known = None
            token = self.get(role, late)
            if token != refused:
                return token
        return None

    def rotate(self, role: Role, deadline: Deadline | None = None) -> str:
        """Make the token of ``role`` invalid, and return a new one.

        Our clients read the key file again when they are refused. Other clients need the new token.

        Raises:
            UsageError: the role is ``api``; TorchServe creates that token only at its start.
            AuthorizationError: the key file cannot be read, or the server does not return a new token.
            DeadlineError: no token in time; None means ten seconds.
        """
        if role == "api":
            raise UsageError(
                "TorchServe creates a new api token only at its start", tip="marsmith stop, marsmith serve"
            )
        late = deadline or Deadline(RENEWAL_DEADLINE_S)
        with self._alone(late), self._held(late):
            known = read_key_file(self._path, late)
            self._ask_for_new(role, known.api.value, late)
            self._known = read_key_file(self._path, late)
            return self._known.of(role).value

    def _renewed(self, role: Role, deadline: Deadline) -> KeyFile:
        with self._held(deadline):
            # Another process may have renewed it already.
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

    # Both locks are always taken in this order, to avoid a deadlock.

    @contextmanager
    def _alone(self, deadline: Deadline) -> Iterator[None]:
        """Lock out other threads."""
        if not self._lock.acquire(timeout=min(deadline.left_s, threading.TIMEOUT_MAX)):
            raise self._too_late(deadline)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _held(self, deadline: Deadline) -> Iterator[None]:
        """Lock out other processes."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            # The file was there when the token was read; the server deletes it when it ends.
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
    """Source of the tokens of one server.

    Attributes:
        key_file: TorchServe's ``key_file.json``.
        management: base URL of the management API; None: tokens cannot be renewed.
        ca_file: trusted certificates of the management API in PEM; None: the public ones.
    """

    key_file: Path
    management: str | None
    ca_file: Path | None = None

    @classmethod
    def of(cls, state: RunState) -> TokenAccess | None:
        """Return the access to a running server's tokens; None if it requires none."""
        return cls(state.key_file, state.management, state.ca_file) if state.tokens else None

    @contextmanager
    def opened(self) -> Iterator[TokenSource]:
        """Yield the source of tokens."""
        transport = Transport(self.ca_file)
        try:
            yield TokenSource(self.key_file, transport, self.management)
        finally:
            transport.close()


def token(source: RunState | Path, role: Role, *, management: str | None = None, rotate: bool = False) -> str:
    """Return a valid token of ``role``.

    Args:
        source: the running server, or its key file.
        role: role of the API.
        management: base URL of the management API if ``source`` is a key file. None: tokens cannot be renewed.
        rotate: whether to make the current one invalid first.

    Raises:
        AuthorizationError: the server requires no token, the key file cannot be read, or there is no new token.
        UsageError: the api token cannot be rotated.
    """
    access = TokenAccess.of(source) if isinstance(source, RunState) else TokenAccess(source, management)
    if access is None:
        raise AuthorizationError("the server requires no token", tip="call it without an Authorization header")
    with access.opened() as tokens:
        return tokens.rotate(role) if rotate else tokens.get(role)


def _now() -> datetime:
    return datetime.now(UTC)
