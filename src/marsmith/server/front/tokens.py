"""Tokens at the front: a client's token outlives a restart of TorchServe, which makes new ones.

A filter for each attempt replaces a token of an earlier TorchServe by the current one. Everything else arrives as the
client sent it, so that TorchServe itself accepts the current token and refuses a wrong or a missing one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from marsmith.client.tokens import Token
from marsmith.server.front.upstream import LUA, TOKEN_FILTER
from marsmith.server.front.xds import typed

_SCRIPT = Path(__file__).parent / "lua" / "tokens.lua"
# A token without an expiry; later than any clock here.
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Tokens:
    """Inference tokens that the front accepts.

    Attributes:
        current: the token that TorchServe accepts; None: it has not made one yet, or requires none.
        earlier: expiry of the tokens of earlier TorchServes of this server, by token.
    """

    current: Token | None = None
    earlier: Mapping[str, datetime] = field(default_factory=dict, repr=False)

    def after_restart(self, made: Token, now: datetime) -> Tokens:
        """Return the tokens after TorchServe has made ``made`` at a restart: those before it stay until they expire."""
        before = {self.current.value: self.current.expires or _NEVER} if self.current else {}
        return Tokens(made, _valid({**self.earlier, **before}, now, made.value))

    def after_renewal(self, made: Token, now: datetime) -> Tokens:
        """Return the tokens after ``made`` was requested, which makes those before it invalid, unless one is due."""
        if self.current is not None and self.current.value == made.value:
            return replace(self, earlier=_valid(self.earlier, now, made.value))
        if self.current is not None and not self.current.is_due(now):
            return Tokens(made)
        return self.after_restart(made, now)


def token_filter(tokens: Tokens) -> dict[str, Any]:
    """Return the filter that replaces an earlier token by the current one."""
    current = tokens.current.value if tokens.current else ""
    earlier = "".join(f"  [{_lua(key)}] = {int(expires.timestamp())},\n" for key, expires in tokens.earlier.items())
    script = f"local CURRENT = {_lua(current)}\nlocal EARLIER = {{\n{earlier}}}\n{_script()}"
    return typed(
        "envoy.config.core.v3.TypedExtensionConfig",
        name=TOKEN_FILTER,
        typed_config=typed(LUA, default_source_code={"inline_string": script}),
    )


def render_tokens(tokens: Tokens) -> str:
    """Render the tokens for a file; ``parse_tokens`` restores them."""
    current = tokens.current
    shown = {"value": current.value, "expires": _text(current.expires)} if current else None
    return json.dumps({"current": shown, "earlier": {key: _text(when) for key, when in tokens.earlier.items()}})


def parse_tokens(text: str) -> Tokens:
    """Parse the text of ``render_tokens``.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
    data = json.loads(text)
    shown = data["current"]
    current = Token(str(shown["value"]), _instant(shown["expires"])) if shown else None
    return Tokens(current, {str(key): datetime.fromisoformat(when) for key, when in data["earlier"].items()})


def _valid(tokens: Mapping[str, datetime], now: datetime, current: str) -> dict[str, datetime]:
    return {key: expires for key, expires in tokens.items() if expires > now and key != current}


def _text(when: datetime | None) -> str | None:
    return when.isoformat() if when else None


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _lua(text: str) -> str:
    """Return a literal of Lua; every character that is special in one is written as its number."""
    return '"' + "".join(each if each.isalnum() else f"\\{ord(each):03}" for each in text) + '"'


@cache
def _script() -> str:
    return _SCRIPT.read_text(encoding="ascii")
