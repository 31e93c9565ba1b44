"""The front as a deploy uses it: which share of a model's requests another version gets, and what was answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from marsmith.errors import ServerError


@dataclass(frozen=True)
class Share:
    """A version that gets a share of the requests to a model that name no version.

    Attributes:
        version: the version.
        share: its share, in ten-thousandths.
        sticky: kind and name of what a user is recognised by; None: each request by itself.
        try_timeout_s: time after which a request is given up on the version and repeated, in seconds.
    """

    version: str
    share: int
    sticky: tuple[Literal["header", "cookie"], str] | None
    try_timeout_s: float


@dataclass(frozen=True)
class Copies:
    """A version that gets copies of the requests to a model that name no version.

    Attributes:
        version: the version; empty: the default version, which gets copies of what another version's share is.
        part: which part of the requests is copied, in ten-thousandths.
    """

    version: str
    part: int


@dataclass(frozen=True)
class CopyCounts:
    """How many copies a version got since the front began to count.

    Attributes:
        sent: copies that were sent.
        dropped: copies that were not sent, because too many were under way.
        under_way: copies without a reply yet.
    """

    sent: int = 0
    dropped: int = 0
    under_way: int = 0


class Answer(Protocol):
    """A request to a model with a share, as the front has logged it."""

    @property
    def at_s(self) -> float:
        """When it came, in seconds since the epoch."""

    @property
    def model(self) -> str:
        """The model that was asked."""

    @property
    def version(self) -> str:
        """The version that was asked first; empty: the default version."""

    @property
    def user(self) -> str:
        """Hash of the sticky key; empty if it had none."""

    @property
    def request_id(self) -> str:
        """Its header ``x-request-id``."""

    @property
    def attempts(self) -> int:
        """How often it was sent; 2 on a canary: the first one failed, and the default version gave the reply."""

    @property
    def duration_ms(self) -> float:
        """Time from its first byte to the last one of its reply, in milliseconds."""

    @property
    def was_answered(self) -> bool:
        """Whether the client got any reply; if not, nothing follows from it."""

    @property
    def reply_failed(self) -> bool:
        """Whether the reply that the client got is a failure of the server."""

    @property
    def was_refused(self) -> bool:
        """Whether the reply says that the client is to blame (4xx)."""

    @property
    def failed_on_canary_alone(self) -> bool:
        """Whether it failed on the canary, and not also on the default version."""


class Front(Protocol):
    """A front that divides the requests of models."""

    @property
    def missing(self) -> str | None:
        """Why it cannot divide requests; None if it can."""

    def set_share(self, model: str, share: Share | None) -> None:
        """Give a version a share of a model's requests, which may be 0; None: all of them go to the default version.

        With None, requests that the version has in hand are waited for: they can be repeated until then.

        Raises:
            ServerError: the front does not take it; the shares before are in force.
        """

    def share_of(self, model: str) -> Share | None:
        """Return the share that is in force; None if all requests go to the default version."""

    def set_copies(self, model: str, copies: Copies | None, *, of_canary: bool = False) -> None:
        """Copy a part of a model's requests to a version, which may be 0; None: to none.

        Args:
            model: model name.
            copies: who gets them.
            of_canary: whether those of the version with a share are copied, and not those of the default version.

        Raises:
            ServerError: the front does not take it; what was in force before is.
        """

    def copies_of(self, model: str, *, of_canary: bool = False) -> Copies | None:
        """Return the copies that are in force; None if there are none."""

    def copy_counts(self, model: str, *, of_canary: bool = False) -> CopyCounts:
        """Return how many copies of a model's requests were sent."""

    def end_of_log(self) -> int:
        """Return the position after the last answer that was logged."""

    def answers(self, position: int) -> tuple[Sequence[Answer], int]:
        """Return the answers that were logged since a position, and the position after them."""


@dataclass(frozen=True)
class NoFront:
    """A server without a front: all requests go to the default version."""

    missing: str | None = "the server runs without the front, which divides requests"

    def set_share(self, model: str, share: Share | None) -> None:
        """Do nothing; raises ServerError if a version is to get a share."""
        if share is not None:
            raise ServerError(f"{model}:{share.version} gets no share: {self.missing}")

    def share_of(self, model: str) -> Share | None:  # noqa: ARG002
        """Return that there is no share."""
        return None

    def set_copies(self, model: str, copies: Copies | None, *, of_canary: bool = False) -> None:  # noqa: ARG002
        """Do nothing; raises ServerError if a version is to get copies."""
        if copies is not None:
            raise ServerError(f"no requests of {model} are copied: {self.missing}")

    def copies_of(self, model: str, *, of_canary: bool = False) -> Copies | None:  # noqa: ARG002
        """Return that there are no copies."""
        return None

    def copy_counts(self, model: str, *, of_canary: bool = False) -> CopyCounts:  # noqa: ARG002
        """Return that there are no copies."""
        return CopyCounts()

    def end_of_log(self) -> int:
        """Return 0."""
        return 0

    def answers(self, position: int) -> tuple[Sequence[Answer], int]:
        """Return no answers."""
        return (), position


def all_to_default(front: Front, model: str) -> None:
    """Send all requests of a model to its default version, and copies of them to none.

    Raises:
        ServerError: the front does not take it.
    """
    if front.share_of(model) is not None:
        front.set_share(model, None)
    for of_canary in (False, True):
        if front.copies_of(model, of_canary=of_canary) is not None:
            front.set_copies(model, None, of_canary=of_canary)
