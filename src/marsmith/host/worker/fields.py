"""What a handler gets of one request: its named parts, decoded as TorchServe's worker does, and its headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from marsmith.runtime.frontend import URLENCODED, FormError, Request, boundary_of, parameters
from marsmith.runtime.handler_context import decoded
from marsmith.runtime.worker_protocol import Parameter

# More parts of one form than any handler reads: each of them becomes several objects.
MOST_FIELDS = 1000


class TooManyFieldsError(Exception):
    """A form with more parts than are read."""


def fields_of(
    request: Mapping[str, Any], blocks: Sequence[bytes], most: int = MOST_FIELDS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the named parts of a request, and its headers, with a mapping under the name of each part.

    Args:
        request: ``headers``, ``type``, ``query`` and ``parts``: the names of the blocks, or null for one body.
        blocks: the bytes of the parts, or the body.
        most: largest number of parts.

    Raises:
        FormError: its form cannot be parsed.
        TooManyFieldsError: it has more parts.
    """
    data, headers = {}, {}
    for part in _parts(request, blocks, most):
        data[part.name] = decoded(part.value, part.content_type)
        headers[part.name] = {"content-type": part.content_type}
    return data, {**headers, **request["headers"]}


def _parts(request: Mapping[str, Any], blocks: Sequence[bytes], most: int) -> Iterator[Parameter]:
    if request["parts"] is not None:
        if len(blocks) > most:
            raise TooManyFieldsError
        for name, block in zip(request["parts"], blocks, strict=True):
            yield Parameter(name, block)
        return
    if request.get("query"):
        for name, text in parse_qsl(request["query"], keep_blank_values=True, max_num_fields=most):
            yield Parameter(name, text.encode())
    (body,) = blocks
    if _separators(body, request["type"] or "") > most:
        raise TooManyFieldsError
    yield from parameters(Request(body, request["type"]))


def _separators(body: bytes, content_type: str) -> int:
    """Return how many parts a form can have at most, before it is parsed; 0 for any other body."""
    boundary = boundary_of(content_type)
    if boundary is not None:
        return body.count(b"--" + boundary)
    return body.count(b"&") if content_type.partition(";")[0].lower() == URLENCODED else 0


__all__ = ["MOST_FIELDS", "FormError", "TooManyFieldsError", "fields_of"]
