"""What stands in front of the server says about a request, beside the request: its id, and whether to log it.

Over REST these are headers. Over gRPC a handler sees no metadata: there they are further entries of the map ``input``
under the same names, and leave it before anything is decoded. An Open Inference Protocol request over gRPC has only its
id to carry them: ``marsmith-log/<x-request-id>/<the sender's id>``, and ``marsmith-shadow/...`` for a copy.

``marsmith serve`` with a front takes ``x-marsmith-*`` out of what clients send. Without a front a client may send them
itself; all that it gains are lines about its own requests, in a file of bounded size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REQUEST_ID, LOG, SHADOW = "x-request-id", "x-marsmith-log", "x-marsmith-shadow"
# Beginnings of an id that carries marks, and whether the request is a copy.
MARKED_IDS = {"marsmith-log/": False, "marsmith-shadow/": True}
# Of an id, in characters; it stands in every line of the log.
_LONGEST = 128


@dataclass(frozen=True)
class Marks:
    """What is said about one request.

    Attributes:
        request_id: the same for all copies of a request; empty: none was given.
        log: whether the prediction log is to have it, whatever its sampling says.
        shadow: whether it is a copy, whose reply nobody waits for.
    """

    request_id: str = ""
    log: bool = False
    shadow: bool = False


def take_marks(fields: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Mapping[str, Any], Marks]:
    """Return the fields without the marks among them, and the marks."""
    said = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    names = [name for name in (REQUEST_ID, LOG, SHADOW) if name in fields]
    # A front gives each REST request an id, so that the fields of a client's form are never taken for marks there.
    if names and REQUEST_ID not in said:
        said = {name: _text(fields[name]) for name in names}
        fields = {name: value for name, value in fields.items() if name not in names}
    return fields, Marks(said.get(REQUEST_ID, "")[:_LONGEST], said.get(LOG) == "1", said.get(SHADOW) == "1")


def take_marked_id(given: str) -> tuple[str, Marks | None]:
    """Return the sender's own id, maybe empty, and the marks that an Open Inference Protocol id carries."""
    for mark, is_shadow in MARKED_IDS.items():
        if given.startswith(mark):
            request_id, _, own = given.removeprefix(mark).partition("/")
            return own, Marks(request_id[:_LONGEST], log=True, shadow=is_shadow)
    return given, None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
