"""At most one event per user: events of one user are not independent of each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

_MARK_BITS = 48
# About 150 kB of JSON; a decision needs a few dozen events.
MOST_USERS = 10_000


class SeenUsers:
    """Users who have had an event, in bounded memory.

    A sticky user stays with one version. If one input of a user fails on every version and the user sends it a hundred
    times, that is one event. If there are too many users, only those in a half of a hash's range go on to count, then
    in a quarter, and so on. That hash is independent of the one that chooses the version, so it favours neither.
    """

    def __init__(self, marks: Iterable[int] = (), halvings: int = 0, most: int = MOST_USERS) -> None:
        self._marks = set(marks)
        self._halvings = halvings
        self._most = most

    def is_first(self, user: str) -> bool:
        """Note an event of a user; return whether it counts. Without a user (empty text) each event counts."""
        if not user:
            return True
        mark = _mark(user)
        if not self._counts(mark) or mark in self._marks:
            return False
        self._marks.add(mark)
        while len(self._marks) > self._most:
            self._halvings += 1
            self._marks = {each for each in self._marks if self._counts(each)}
        return self._counts(mark)

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object: hashes only, no user's name."""
        return {"halvings": self._halvings, "marks": sorted(self._marks)}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> SeenUsers:
        """Return what ``record`` described."""
        return cls(record["marks"], record["halvings"])

    def _counts(self, mark: int) -> bool:
        return mark < 1 << (_MARK_BITS - self._halvings)


def _mark(user: str) -> int:
    salted = hashlib.blake2b(
        user.encode("utf-8", "backslashreplace"), digest_size=_MARK_BITS // 8, person=b"seen-users"
    )
    return int.from_bytes(salted.digest(), "big")
