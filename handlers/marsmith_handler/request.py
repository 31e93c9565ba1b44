"""One request for a model, from any envelope: its body as bytes, text, JSON or an array."""

from __future__ import annotations

import base64
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marsmith_handler.bounded_json import parse_json
from marsmith_handler.errors import BadRequest, ContentTooLarge, UnsupportedMediaType

_WHITE = string.whitespace.encode("ascii")
# Keys of the input in a form or an object, in the order of TorchServe's own handlers and envelopes.
PAYLOAD_KEYS = ("data", "body", "b64")


@dataclass(frozen=True)
class Request:
    """One request for the model.

    Attributes:
        body: bytes or bytearray; from JSON a text, number, list or mapping; from a KServe v2 tensor a numpy array.
        content_type: media type in lower case, without parameters; empty if the sender gave none.
        headers: headers of the HTTP request; names in lower case.
        name: name of the form field or of the KServe v2 input.
    """

    body: Any
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "body"

    @property
    def payload(self) -> Any:
        """The body; of a mapping with ``data``, ``body`` or ``b64``, the value there (base64 decoded for ``b64``)."""
        if isinstance(self.body, Mapping):
            for key in PAYLOAD_KEYS:
                if key in self.body:
                    return unwrapped({key: self.body[key]})
        return self.body

    def as_bytes(self) -> bytes | bytearray:
        """Return the payload as bytes; text is decoded as base64, a row of UINT8 becomes bytes.

        Raises:
            ItemError: 400 not base64; 415 neither bytes nor text.
        """
        payload = self.payload
        if isinstance(payload, bytes | bytearray):
            return payload
        if isinstance(payload, str):
            return decode_base64(payload)
        if isinstance(payload, np.ndarray) and payload.dtype == np.uint8 and payload.ndim == 1:
            return payload.tobytes()
        raise UnsupportedMediaType(f"expected bytes, or base64 text in JSON, not {kind(payload)}")

    def as_text(self) -> str:
        """Return the payload as text, decoded as UTF-8.

        Raises:
            ItemError: 400 not UTF-8; 415 neither text nor bytes.
        """
        payload = self.payload
        if isinstance(payload, str):
            return payload
        if isinstance(payload, bytes | bytearray):
            try:
                return payload.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadRequest(f"not UTF-8 text: {error.reason} at byte {error.start}") from None
        raise UnsupportedMediaType(f"expected text, not {kind(payload)}")

    def as_json(self) -> Any:
        """Return the body as a JSON value; bytes and text are parsed.

        Raises:
            ItemError: 400 not JSON; 413 more values than ``bounded_json.MAX_VALUES``.
        """
        return parse_json(self.body) if isinstance(self.body, bytes | bytearray | str) else self.body


def check_count(count: int, max_items: int) -> None:
    """Raise ContentTooLarge if one HTTP request has more items than the settings allow."""
    if count > max_items:
        raise ContentTooLarge(f"{count} items in one request, at most {max_items} are allowed")


def check_total(amounts: Iterable[float], limit: float, unit: str, setting: str) -> None:
    """Raise ContentTooLarge if the items of one HTTP request are together larger than its handler allows.

    Args:
        amounts: size of each item.
        limit: maximum of their sum.
        unit: unit of both, in words.
        setting: name of the setting with the limit.
    """
    total = sum(amounts)
    if total > limit:
        raise ContentTooLarge(
            f"{total:.10g} {unit} in one request, more than {setting} ({limit:g}): send it in several"
        )


def decode_base64(text: str) -> bytes:
    """Decode base64, with or without line breaks, or a ``data:`` URL; raises BadRequest if it is invalid."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text.encode("ascii").translate(None, _WHITE), validate=True)
    except ValueError as error:
        raise BadRequest(f"not valid base64: {error}") from None


def unwrapped(value: Any) -> Any:
    """Extract a value from objects with nothing else: ``{"data": x}``, ``{"body": x}``, ``{"b64": text}``.

    This includes ``{"image": {"b64": text}}``, with any name: KServe v1 sends bytes in this form.
    """
    while isinstance(value, Mapping) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if key == "b64":
            if not isinstance(inner, str):
                raise BadRequest(f"b64 holds {kind(inner)}, not text")
            return decode_base64(inner)
        if key not in PAYLOAD_KEYS and not (isinstance(inner, Mapping) and inner.keys() == {"b64"}):
            break
        value = inner
    return value


def kind(value: Any) -> str:
    """Name the type of a JSON value for people."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
