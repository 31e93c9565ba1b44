"""A stand-in for TorchServe's context: to test handlers without TorchServe, and to run them in this process.

It has every method and property of TorchServe's own context (0.12.0) that a handler may use. It keeps what the handler
sets, so that a test can check it::

    context = FakeContext(folder, manifest={"model": {"modelName": "m"}})
    handler.initialize(context)
    replies = handler.handle(context.batch([b"good", b"bad"]), context)
    assert context.statuses == [200, 422]

It imports neither TorchServe nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marsmith.runtime.handler_context import HandlerContext, decoded


class FakeContext(HandlerContext):
    """TorchServe's context for one worker and, after ``batch``, for one batch; ``metrics`` is what the test sets."""

    def batch(
        self,
        bodies: Sequence[Any],
        *,
        content_type: str | Sequence[str] = "",
        headers: Mapping[str, str] | None = None,
        name: str = "body",
    ) -> list[dict[str, Any]]:
        """Start a batch with one request for each body, and return the ``data`` that the handler would get.

        Args:
            bodies: bytes, decoded as TorchServe does for the content type, or a mapping of form fields.
            content_type: content type of all bodies, or of each.
            headers: headers of each request.
            name: name of the field that holds a body; ``data`` in a form.
        """
        kinds = [content_type] * len(bodies) if isinstance(content_type, str) else content_type
        pairs = list(zip(bodies, kinds, strict=True))
        rows = [dict(body) if isinstance(body, Mapping) else {name: decoded(body, kind)} for body, kind in pairs]
        fields = [{key: {"content-type": kind} for key in row} for row, kind in zip(rows, kinds, strict=True)]
        ids = [f"request-{idx}" for idx in range(len(rows))]
        self.begin(ids, [{**each, **(headers or {})} for each in fields])
        return rows
