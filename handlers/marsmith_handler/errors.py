"""What can be wrong with one item of a batch, each kind with the HTTP status that its sender gets.

::

    ItemError
    ├── MalformedRequest      400  the bytes do not follow the format that they claim
    ├── TooLarge              413  more bytes, pixels or items than the settings allow
    ├── UnknownType           415  not a format that this handler reads
    ├── Unusable              422  well formed, and still no input for this model
    ├── BrokenAnswer          500  the model or the handler failed on this item, and on this item only
    ├── DeadlinePassed        504  the sender has stopped waiting
    └── OutOfMemory           507  the item does not fit into memory, even alone
"""

from __future__ import annotations

# Of a message, in characters: it may quote the request, and a reply that is too long costs TorchServe the worker.
LONGEST_MESSAGE = 1000


class ItemError(Exception):
    """An item that gets an error instead of an answer, while its neighbours get theirs.

    Attributes:
        code: HTTP status, 400 to 599.
        type: short name of the kind, for programs.
        message: what is wrong, for people; cut if it is longer than ``LONGEST_MESSAGE``.
    """

    def __init__(self, code: int, type: str, message: str) -> None:  # noqa: A002 - the key in the reply's body
        message = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "..."
        super().__init__(message)
        self.code = code
        self.type = type
        self.message = message


class MalformedRequest(ItemError):  # noqa: N818 - names the finding; it is not a failure of ours
    """The bytes do not follow the format that they claim (400)."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "MalformedRequest", message)


class TooLarge(ItemError):  # noqa: N818
    """More bytes, pixels or items than the settings allow (413)."""

    def __init__(self, message: str) -> None:
        super().__init__(413, "TooLarge", message)


class UnknownType(ItemError):  # noqa: N818
    """Not a format that this handler reads (415)."""

    def __init__(self, message: str) -> None:
        super().__init__(415, "UnknownType", message)


class Unusable(ItemError):  # noqa: N818
    """Well formed, and still no input for this model (422)."""

    def __init__(self, message: str) -> None:
        super().__init__(422, "Unusable", message)


class BrokenAnswer(ItemError):  # noqa: N818
    """The model or the handler failed on this item (500)."""

    def __init__(self, message: str) -> None:
        super().__init__(500, "BrokenAnswer", message)


class DeadlinePassed(ItemError):  # noqa: N818
    """The sender has stopped waiting (504)."""

    def __init__(self, message: str) -> None:
        super().__init__(504, "DeadlinePassed", message)


class OutOfMemory(ItemError):  # noqa: N818
    """The item does not fit into memory, even alone (507)."""

    def __init__(self, message: str) -> None:
        super().__init__(507, "OutOfMemory", message)
