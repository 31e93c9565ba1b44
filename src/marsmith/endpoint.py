"""One of TorchServe's REST APIs at its address, called with the token of its role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from marsmith.failures import is_authorization_failure
from marsmith.rest import Reply, Request, Transport
from marsmith.tokens import Role, TokenSource


def with_token(tokens: TokenSource | None, role: Role, send: Callable[[str | None], Reply]) -> Reply:
    """Call ``send`` with a token, and once more with a newer one where it was refused.

    A refused request has not been worked on, so that it can be sent again.
    """
    token = tokens.get(role) if tokens else None
    reply = send(token)
    if tokens and token and is_authorization_failure(reply):
        newer = tokens.after_refusal(role, token)
        if newer:
            return send(newer)
    return reply


@dataclass(frozen=True)
class Endpoint:
    """One REST API.

    Attributes:
        url: its base URL.
        role: whose token it wants.
        transport: what carries the requests.
        tokens: where the token comes from; None where the server asks for none.
        deadline_s: how long a reply may take, where a call says nothing else, in seconds.
    """

    url: str
    role: Role
    transport: Transport
    tokens: TokenSource | None
    deadline_s: float

    def call(
        self,
        method: str,
        *segments: str,
        parameters: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Reply:
        """Send a request to ``segments``, a path below the base URL, and return the reply, whatever its status.

        Raises:
            ConnectionFailedError: nothing listens there, or the connection broke.
            DeadlineError: no reply in time.
            AuthorizationError: there is no token.
        """
        request = Request(method, self.url, segments, parameters or {}, body, headers or {})
        seconds = self.deadline_s if deadline_s is None else deadline_s
        return with_token(
            self.tokens, self.role, lambda token: self.transport.send(request, token=token, deadline_s=seconds)
        )
