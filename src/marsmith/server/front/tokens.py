"""Tokens at the front: a client's token outlives a restart of TorchServe, which makes new ones.

A filter for each attempt replaces a token of an earlier TorchServe by the current one. Everything else arrives as the
client sent it, so that TorchServe itself accepts the current token and refuses a wrong or a missing one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from marsmith.client.key_file import Token
from marsmith.server.front import scripts
from marsmith.server.front.scripts import Json
from marsmith.server.front.upstream import TOKEN_FILTER

# A token without an expiry; later than any clock here.
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Tokens:
    """Inference tokens that the front accepts.

    Attributes:
        current: the token that TorchServe accepts; None: it has not made one yet, or requires none.
        earlier: expiry of the tokens of earlier TorchServes of this server, by token.
        is_open: whether clients need no token: each request gets the current one, whatever it has.
    """

    current: Token | None = None
    earlier: Mapping[str, datetime] = field(default_factory=dict, repr=False)
    is_open: bool = False

    def after_restart(self, made: Token, now: datetime) -> Tokens:
        """Return the tokens after TorchServe has made ``made`` at a restart: those before it stay until they expire."""
        before = {self.current.value: self.current.expires or _NEVER} if self.current else {}
        return replace(self, current=made, earlier=_valid({**self.earlier, **before}, now, made.value))

    def after_renewal(self, made: Token, now: datetime) -> Tokens:
        """Return the tokens after ``made`` was requested, which makes those before it invalid, unless one is due."""
        if self.current is not None and self.current.value == made.value:
            return replace(self, earlier=_valid(self.earlier, now, made.value))
        if self.current is not None and not self.current.is_due(now):
            return replace(self, current=made, earlier={})
        return self.after_restart(made, now)


def token_filter(tokens: Tokens) -> Json:
    """Return the filter that replaces an earlier token by the current one."""
    earlier = {token: int(expires.timestamp()) for token, expires in tokens.earlier.items()}
    current = tokens.current.value if tokens.current else ""
    content = scripts.sets_token(TOKEN_FILTER, current, earlier, always=tokens.is_open)
    return {"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", **content}


def render_tokens(tokens: Tokens) -> str:
    """Render the tokens for a file; ``parse_tokens`` restores them."""
    current = tokens.current
    shown = {"value": current.value, "expires": _text(current.expires)} if current else None
    earlier = {key: _text(when) for key, when in tokens.earlier.items()}
    return json.dumps({"current": shown, "earlier": earlier, "open": tokens.is_open})


def parse_tokens(text: str) -> Tokens:
    """Parse the text of ``render_tokens``.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
    data = json.loads(text)
    shown = data["current"]
    current = Token(str(shown["value"]), _instant(shown["expires"])) if shown else None
    earlier = {str(key): datetime.fromisoformat(when) for key, when in data["earlier"].items()}
    return Tokens(current, earlier, bool(data.get("open", False)))


def _valid(tokens: Mapping[str, datetime], now: datetime, current: str) -> dict[str, datetime]:
    return {key: expires for key, expires in tokens.items() if expires > now and key != current}


def _text(when: datetime | None) -> str | None:
    return when.isoformat() if when else None


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
