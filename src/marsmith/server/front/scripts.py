"""The Lua of the front's filters, from the files beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]
LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"


def names_models(name: str) -> Json:
    """Return the listener's filter that finds out which model a request is for; ``name`` is the filter's."""
    return _filter(name, f"{_file('message')}\n{_file('listener')}")


def names_version(version: str | None, *, shielded: bool) -> Json:
    """Return a cluster's filter that names a version in requests, and tells failures in replies.

    Args:
        version: the version; None: requests stay as they are, and failures are told only.
        shielded: whether only the first attempt names it, and asks for a second one if it failed.
    """
    constants = {
        "VERSION": lua_text(version) if version else "nil",
        "PATH_VERSION": lua_text(quote(version, safe="")) if version else "nil",
        "SHIELDED": "true" if shielded else "false",
    }
    lines = "".join(f"local {key} = {value}\n" for key, value in constants.items())
    return _filter("marsmith.version", f"{lines}{_file('message')}\n{_file('upstream')}")


def sets_token(name: str, current: str, earlier: Mapping[str, int], *, always: bool = False) -> Json:
    """Return the filter that replaces an earlier token by the current one.

    Args:
        name: name of the filter.
        current: the token that TorchServe accepts; empty if there is none.
        earlier: expiry of each earlier token, in seconds since the epoch.
        always: whether each request gets the current token.
    """
    if not earlier and not (always and current):
        # The usual case: no request has to be looked at.
        return _filter(name, "-- There is no token to replace.\n")
    entries = "".join(f"  [{lua_text(token)}] = {expires},\n" for token, expires in earlier.items())
    constants = f"local CURRENT = {lua_text(current)}\nlocal ALWAYS = {'true' if always and current else 'false'}\n"
    return _filter(name, f"{constants}local EARLIER = {{\n{entries}}}\n{_file('tokens')}")


def refuses_above(largest_bytes: int) -> Json:
    """Return the listener's filter that refuses a request whose body is said to be larger."""
    return _filter("marsmith.limit", f"local LARGEST = {largest_bytes}\n{_file('limit')}")


def lua_text(text: str) -> str:
    """Return a text as Lua writes it: every byte but letters and digits as a number."""
    plain = (chr(byte) if chr(byte).isascii() and chr(byte).isalnum() else f"\\{byte:03d}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _filter(name: str, source: str) -> Json:
    return {"name": name, "typed_config": {"@type": LUA, "default_source_code": {"inline_string": source}}}


@cache
def _file(name: str) -> str:
    return (files("marsmith.server.front") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
