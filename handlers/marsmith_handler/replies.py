"""Replies: bytes with a content type, and errors as a JSON body with a status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from marsmith_handler.errors import InternalError, ItemError

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"
TEXT_TYPE = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Reply:
    """A reply as it is sent.

    Attributes:
        body: bytes of the reply.
        content_type: media type; ASCII only, because TorchServe's wire protocol counts characters, not bytes.
        status: HTTP status.
    """

    body: bytes
    content_type: str = JSON_TYPE
    status: int = 200

    @property
    def phrase(self) -> str:
        """The standard phrase of the status, which is ASCII; empty for a status without one."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return ""


def to_json(value: Any) -> bytes:
    """Print a value as JSON in UTF-8, with non-ASCII characters unescaped.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
        TypeError: it is not a JSON value.
    """
    # A lone surrogate has no UTF-8 form; backslashreplace writes JSON's escape for it.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def encode_reply(value: Any) -> Reply:
    """Turn the result of a handler's ``encode`` into a reply: bytes and text unchanged, anything else as JSON.

    Raises:
        ItemError: 500 JSON cannot express it.
    """
    if isinstance(value, Reply):
        if not value.content_type.isascii():
            raise InternalError(f"the content type {value.content_type!r} is not ASCII")
        return value
    if isinstance(value, bytes | bytearray):
        return Reply(bytes(value), BYTES_TYPE)
    if isinstance(value, str):
        return Reply(value.encode("utf-8", "replace"), TEXT_TYPE)
    try:
        return Reply(to_json(value))
    except ValueError:
        raise InternalError("the answer holds a number that is not finite (NaN or infinity)") from None
    except TypeError as error:
        raise InternalError(f"the answer is no JSON value: {error}") from None


def error_reply(error: ItemError, request_id: str, v2_identity: Mapping[str, Any] | None = None) -> Reply:
    """Return a reply for an error, which the body describes too: over gRPC TorchServe drops the status.

    Args:
        error: the error.
        request_id: TorchServe's id of the request.
        v2_identity: identity fields of a reply to a KServe v2 request. TorchServe's gRPC side reads these fields and
            ``outputs`` from any such reply, and loses the worker if they are missing. v2 clients read the text from
            ``error``.
    """
    body: dict[str, Any] = {"code": error.code, "type": error.type, "message": error.message, "request_id": request_id}
    if v2_identity is not None:
        body |= {**v2_identity, "outputs": [], "error": error.message}
    return Reply(to_json(body), JSON_TYPE, error.code)


def limited(reply: Reply, max_bytes: int) -> Reply:
    """Return the reply if it is not too large for TorchServe's frontend, which would end the worker.

    Raises:
        ItemError: 500 larger than ``max_bytes``.
    """
    if len(reply.body) > max_bytes:
        raise InternalError(
            f"the reply has {len(reply.body)} bytes, more than max_response_bytes ({max_bytes}); "
            "ask for less at once, or raise it together with max_response_size in the server config"
        )
    return reply
