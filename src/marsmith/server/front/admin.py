"""Envoy's admin interface, on a Unix socket that only its owner can open."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from pathlib import Path

from marsmith.errors import FrontError
from marsmith.server.front.bootstrap import ADMIN_SOCKET

_CALL_S = 5.0
_LOOK_S = 0.01


def ask(folder: Path, path: str, *, method: str = "GET", timeout_s: float = _CALL_S) -> str:
    """Send a request to the admin interface, and return the body of the reply.

    Args:
        folder: folder of the front's files.
        path: path with its query, such as ``/ready``.
        method: GET, or POST for what changes Envoy.
        timeout_s: time limit, in seconds.

    Raises:
        FrontError: Envoy does not answer, or not with 200.
    """
    connection = _AdminConnection(folder, timeout_s)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        body = reply.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise FrontError(f"Envoy does not answer at {folder / ADMIN_SOCKET}: {error}", tip="marsmith serve") from None
    finally:
        connection.close()
    if reply.status != 200:
        raise FrontError(f"Envoy answers {method} {path} with {reply.status}: {body.strip()}")
    return body


def text_stat(folder: Path, name: str) -> str:
    """Return a statistic that is a text, such as ``cluster_manager.cds.version_text``; empty if there is none.

    Raises:
        FrontError: as ``ask``.
    """
    lines = ask(folder, "/stats?type=TextReadouts").splitlines()
    found = next((line for line in lines if line.startswith(f"{name}: ")), "")
    return found.removeprefix(f"{name}: ").strip('"')


def wait_for_file(folder: Path, name: str, path: Path, *, deadline_s: float) -> None:
    """Wait until Envoy has accepted a file of resources as it is then; somebody else may have replaced it since.

    Args:
        folder: folder of the front's files.
        name: statistic with the accepted version.
        path: the file.
        deadline_s: time limit, in seconds.

    Raises:
        FrontError: it has not accepted it in time, or does not answer.
    """
    late = time.monotonic() + deadline_s
    while (known := text_stat(folder, name)) != json.loads(path.read_text(encoding="utf-8"))["version_info"]:
        if time.monotonic() > late:
            raise FrontError(
                f"Envoy has not accepted {path.name} in {deadline_s:g} s: {name} is {known or 'empty'}",
                tip=f"its log is {folder / 'envoy.log'}",
            )
        time.sleep(_LOOK_S)


class _AdminConnection(http.client.HTTPConnection):
    """A connection to the socket in a folder whose path may be longer than that of a socket."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._folder = folder

    def connect(self) -> None:
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{ADMIN_SOCKET}")
        finally:
            os.close(folder)
