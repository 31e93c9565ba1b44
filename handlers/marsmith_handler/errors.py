"""The errors that one item of a batch can get, each with its HTTP status; the names are those of RFC 9110 and gRPC.

::

    ItemError
    ├── BadRequest             400  the bytes do not follow the format that they claim
    ├── ContentTooLarge        413  more bytes, pixels or items than the settings allow
    ├── UnsupportedMediaType   415  not a format that this handler reads
    ├── UnprocessableContent   422  well formed, but not an input for this model
    ├── InternalError          500  the model or the handler failed on this item, and on this item only
    ├── DeadlineExceeded       504  the sender has stopped waiting
    └── InsufficientStorage    507  the item does not fit into memory, even alone
"""

from __future__ import annotations

# Of a message, in characters: it may quote the request, and TorchServe ends a worker whose reply is too long.
LONGEST_MESSAGE = 1000


class ItemError(Exception):
    """An error of one item of a batch; the other items get their answers.

    Attributes:
        code: HTTP status, 400 to 599.
        type: short name of the error, for programs.
        message: description for people; cut if it is longer than ``LONGEST_MESSAGE``.
    """

    def __init__(self, code: int, type: str, message: str) -> None:  # noqa: A002 - the key in the reply's body
        message = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "..."
        super().__init__(message)
        self.code = code
        self.type = type
        self.message = message


class BadRequest(ItemError):  # noqa: N818 - RFC 9110's name
    """The bytes do not follow the format that they claim (400)."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "BadRequest", message)


class ContentTooLarge(ItemError):  # noqa: N818
    """More bytes, pixels or items than the settings allow (413)."""

    def __init__(self, message: str) -> None:
        super().__init__(413, "ContentTooLarge", message)


class UnsupportedMediaType(ItemError):  # noqa: N818
    """Not a format that this handler reads (415)."""

    def __init__(self, message: str) -> None:
        super().__init__(415, "UnsupportedMediaType", message)


class UnprocessableContent(ItemError):  # noqa: N818
    """Well formed, but not an input for this model (422)."""

    def __init__(self, message: str) -> None:
        super().__init__(422, "UnprocessableContent", message)


class InternalError(ItemError):
    """The model or the handler failed on this item (500)."""

    def __init__(self, message: str) -> None:
        super().__init__(500, "InternalError", message)


class DeadlineExceeded(ItemError):  # noqa: N818
    """The sender has stopped waiting (504)."""

    def __init__(self, message: str) -> None:
        super().__init__(504, "DeadlineExceeded", message)


class InsufficientStorage(ItemError):  # noqa: N818
    """The item does not fit into memory, even alone (507)."""

    def __init__(self, message: str) -> None:
        super().__init__(507, "InsufficientStorage", message)
