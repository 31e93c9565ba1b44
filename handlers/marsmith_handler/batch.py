"""One HTTP or gRPC request in a batch: its content, its items and results, or its error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marsmith_handler.envelope import Envelope, identity, open_envelope
from marsmith_handler.errors import BadRequest, ContentTooLarge, DeadlineExceeded, ItemError
from marsmith_handler.marks import Marks, take_marks
from marsmith_handler.request import Request
from marsmith_handler.settings import HandlerSettings


@dataclass
class Slot:
    """A place in the batch.

    Attributes:
        index: position in the batch.
        request_id: TorchServe's id of the request.
        fields: from TorchServe: form fields, or ``body`` alone; without marks.
        headers: from TorchServe.
        envelope: the requests in it; None until it is opened.
        items: results of ``decode``, one for each request.
        results: results of ``infer``, one for each item.
        replies: results of ``encode``, one for each result, as Python values.
        failure: its error; None if there is none.
        marks: what is said about the request beside it; none if nothing is.
    """

    index: int
    request_id: str
    fields: Mapping[str, Any]
    headers: Mapping[str, Any]
    envelope: Envelope | None = None
    items: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    replies: list[Any] = field(default_factory=list)
    failure: ItemError | None = None
    marks: Marks = field(init=False)

    def __post_init__(self) -> None:
        self.fields, self.marks = take_marks(self.fields, self.headers)

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests that still need an answer: none if the slot has failed."""
        return self.envelope.requests if self.envelope and not self.failure else ()

    def v2_identity(self, model: str, version: str) -> dict[str, str] | None:
        """Return the identity fields of a reply to a KServe v2 request; None for requests of another form."""
        if self.envelope is None or self.envelope.form != "v2":
            return None
        return identity(self.envelope, model=model, version=version, request_id=self.request_id)

    def asks(self, what: str) -> bool:
        """Return whether the frontend has marked it as ``describe`` or ``explain``."""
        return self.headers.get(what) == "True"

    def header(self, name: str) -> str | None:
        """Return a header by its lower-case name; the frontend does not change the case of names."""
        return next((v for k, v in self.headers.items() if k.lower() == name and isinstance(v, str)), None)

    def fail(self, failure: ItemError, position: int | None = None) -> None:
        """Give the whole slot an error, the first one found.

        Args:
            failure: the error.
            position: of the request that failed; None: not a single one.
        """
        if self.failure is None:
            count = len(self.envelope.requests) if self.envelope else 1
            where = f"item {position + 1} of {count}: " if position is not None and count > 1 else ""
            self.failure = ItemError(failure.code, failure.type, where + failure.message)

    def open(self, settings: HandlerSettings) -> None:
        """Extract the requests; raises ItemError for invalid ones."""
        if self.asks("explain"):
            raise ItemError(501, "NotImplemented", "this handler gives no explanations")
        self.check_deadline(settings)
        envelope = open_envelope(self.fields, self.headers, settings.max_items)
        _check_sizes(envelope.requests, settings.max_body_bytes)
        self.envelope = envelope
        self.marks = envelope.marks or self.marks

    def check_deadline(self, settings: HandlerSettings) -> None:
        """Raise DeadlineExceeded if the sender does not wait for the reply any more.

        The header is a time and not a duration: a handler cannot see when the request arrived.
        """
        text = self.header(settings.deadline_header)
        if text is None:
            return
        try:
            late_ms = time.time() * 1000 - float(text)
        except ValueError:
            raise BadRequest(f"{settings.deadline_header} is not milliseconds since the epoch") from None
        if late_ms > 0:
            raise DeadlineExceeded(f"the deadline passed {late_ms:.0f} ms ago")


def _check_sizes(requests: Sequence[Request], max_body_bytes: int) -> None:
    for request in requests:
        size = len(request.body) if isinstance(request.body, bytes | bytearray | str) else 0
        if size > max_body_bytes:
            raise ContentTooLarge(f"{request.name} has {size} bytes, at most {max_body_bytes} are allowed")
