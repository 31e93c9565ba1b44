"""A parsed ``config.properties`` for the rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from marsmith.config.properties import Entry
from marsmith.config.server_keys import KEY_TYPES, is_true

# ADDRESS_PATTERN of ConfigManager.java: a host has no colon, and nothing follows the port.
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[^:^/]+)(?::(?P<port>[0-9]+))?|unix:(?P<socket>/.*)", re.IGNORECASE
)
_STANDARD_PORTS = {
    ("management_address", "http"): 8081,
    ("management_address", "https"): 8444,
    ("metrics_address", "http"): 8082,
    ("metrics_address", "https"): 8445,
    ("inference_address", "http"): 80,
    ("inference_address", "https"): 443,
}
_LOCAL_HOSTS = re.compile(r"localhost|127(\.\d{1,3}){3}|::1", re.IGNORECASE)


@dataclass(frozen=True)
class Listener:
    """Address of one API.

    Attributes:
        key: key of the address.
        host: empty for a unix socket.
        port: 0 for a unix socket.
        secure: whether it uses TLS.
    """

    key: str
    host: str
    port: int
    secure: bool

    @property
    def client_host(self) -> str:
        """The host for a client on this machine."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - read, not bound

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect to it."""
        return not self.host or bool(_LOCAL_HOSTS.fullmatch(self.host))


@dataclass(frozen=True)
class ServerFile:
    """A parsed ``config.properties``.

    Attributes:
        path: the file, as given.
        root: folder that relative paths refer to.
        entries: its entries, in order.
        environment: environment variables of a server.
    """

    path: Path
    root: Path
    entries: tuple[Entry, ...]
    environment: Mapping[str, str]

    @cached_property
    def last(self) -> Mapping[str, Entry]:
        """The effective entry by key."""
        return {entry.key: entry for entry in self.entries}

    def value(self, key: str) -> str:
        """Return the effective value, or TorchServe's default."""
        return self.last[key].value if key in self.last else KEY_TYPES[key].default

    def is_true(self, key: str) -> bool:
        """Return a boolean as TorchServe reads it."""
        return is_true(self.value(key))

    def line(self, key: str) -> int:
        """Return the line of a key; 1 if it is missing."""
        return self.last[key].line if key in self.last else 1

    @cached_property
    def listeners(self) -> Mapping[str, Listener]:
        """Addresses of the APIs by their keys, without malformed ones."""
        found = (
            listener_at(key, self.value(key)) for key in ("inference_address", "management_address", "metrics_address")
        )
        listeners = {listener.key: listener for listener in found if listener}
        for api in ("inference", "management"):
            port = self.value(f"grpc_{api}_port")
            if port.isascii() and port.isdigit():
                key = f"grpc_{api}_address"
                listeners[key] = Listener(key, self.value(key), int(port), self.is_true("enable_grpc_ssl"))
        return listeners


def listener_at(key: str, address: str) -> Listener | None:
    """Parse the address of a REST API; None if TorchServe would refuse it."""
    match = _ADDRESS.fullmatch(address)
    if not match:
        return None
    if match["socket"]:
        return Listener(key, "", 0, secure=False)
    scheme = match["scheme"].lower()
    port = int(match["port"]) if match["port"] else _STANDARD_PORTS[key, scheme]
    return Listener(key, match["host"], port, scheme == "https")
