"""The evidence of a whole rollout: one e-process for each kind of event, with alpha split over the kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from marsmith.statistics.evidence import Evidence, value, weigh, weigh_rate
from marsmith.statistics.users import SeenUsers


@dataclass(frozen=True)
class Finding:
    """The state of one kind of event.

    Attributes:
        kind: name of the kind.
        evidence: value of the e-process.
        limit: the value at which the version goes back, ``1 / alpha`` of the kind.
        hits: events of the version under test; of a rate, observations with the event.
        others: events of the stable version; of a rate, observations without the event.
    """

    kind: str
    evidence: float
    limit: float
    hits: int
    others: int

    @property
    def reached(self) -> bool:
        """Whether the evidence has reached its limit."""
        return self.evidence >= self.limit

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {**asdict(self), "reached": self.reached}


class Ledger:
    """Evidence by kind of event; grows with ``event`` and ``observe``.

    The probability that a version that is no worse than tolerated is ever found at fault, by any kind, is at most
    ``alpha``: each kind has its part, and the parts add up (union bound).
    """

    def __init__(self, kinds: Mapping[str, float], alpha: float = 0.01) -> None:
        """Begin without evidence.

        Args:
            kinds: names of the kinds of event that will be weighed, each with its weight. A kind with more weight has
                more of alpha, so that less evidence is enough.
            alpha: largest probability of a false finding, over all kinds and all time; split by weight.

        Raises:
            ValueError: there is no kind, or a weight or alpha is out of range.
        """
        if not kinds or min(kinds.values()) <= 0 or not 0 < alpha < 1:
            raise ValueError(f"kinds {dict(kinds)} with alpha {alpha}: weights above 0, and alpha above 0 and below 1")
        total = sum(kinds.values())
        self._alphas = {kind: alpha * weight / total for kind, weight in kinds.items()}
        self._evidence = {kind: Evidence() for kind in kinds}
        self._users = {kind: SeenUsers() for kind in kinds}

    def event(self, kind: str, share: float, *, is_canary: bool, user: str = "") -> None:
        """Weigh an event that lies with one of two versions; at most one of each user counts.

        Args:
            kind: one of the ledger's kinds.
            share: the canary's share of the traffic when the request arrived, 0 to 1.
            is_canary: whether the canary got the request.
            user: sticky key, or a hash of it; empty for a request that was routed by itself.
        """
        # At a share of 0 or 1 the event says nothing, and must not use up the user's one event.
        if 0 < share < 1 and self._users[kind].is_first(user):
            self._evidence[kind] = weigh(self._evidence[kind], share, is_canary)

    def observe(self, kind: str, allowed: float, *, happened: bool, user: str = "") -> None:
        """Weigh an observation of a rate; of the events of one user only the first counts.

        Args:
            kind: one of the ledger's kinds.
            allowed: largest allowed rate, above 0 and below 1.
            happened: whether the event happened, as a pair of replies that disagree.
            user: sticky key, or a hash of it; empty if the request has none.
        """
        # An observation without the event is evidence for the version and always counts: that errs to its favour.
        if not happened or self._users[kind].is_first(user):
            self._evidence[kind] = weigh_rate(self._evidence[kind], allowed, happened)

    def findings(self) -> tuple[Finding, ...]:
        """Return the state of each kind, in the order in which the kinds were named."""
        return tuple(
            Finding(kind, value(evidence), 1 / self._alphas[kind], evidence.hits, evidence.others)
            for kind, evidence in self._evidence.items()
        )

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object, from which ``of_record`` goes on."""
        return {
            kind: {**asdict(evidence), "alpha": self._alphas[kind], "users": self._users[kind].record()}
            for kind, evidence in self._evidence.items()
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Ledger:
        """Return the ledger that ``record`` described."""
        alphas = {kind: stored["alpha"] for kind, stored in record.items()}
        ledger = cls(alphas, sum(alphas.values()))
        for kind, stored in record.items():
            ledger._evidence[kind] = Evidence(tuple(stored["logs"]), stored["hits"], stored["others"])
            ledger._users[kind] = SeenUsers.of_record(stored["users"])
        return ledger
