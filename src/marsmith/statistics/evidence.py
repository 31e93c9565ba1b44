"""Evidence against a version as an e-process: a sum that may be looked at after each event.

If two versions are alike, an event (a failed, slow or refused request) lies with the canary with a probability equal to
the canary's share of the traffic at that moment. How many events there are does not matter: an outage, a burst or a
quiet night moves both versions alike.

Null hypothesis: the odds of the canary are at most ``TOLERATED_RATIO`` times those of its share. Alternatives: at least
``RATIOS`` times the tolerated odds. The evidence is the mean of the likelihood ratios. Under the null hypothesis it is
a supermartingale that begins at 1; by Ville's inequality it ever reaches ``1 / alpha`` with a probability of at most
``alpha``, at whatever times one looks and whatever rule changes the share.

Source: Lindon, Sanden and Shirikian, "Rapid Regression Detection in Software Deployments through Sequential Testing",
KDD 2022, arXiv 2205.14762. The mixture over a grid is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# A canary gets less traffic, so smaller batches and colder caches: odds that are this much worse are no fault.
TOLERATED_RATIO = 1.5
# From a rate that doubles to one that rises from nearly none to all; few, because each takes its part of the mean.
RATIOS = (2.0, 6.0, 20.0, 60.0)
# exp() of more than this overflows a float.
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Evidence:
    """Evidence on one kind of event.

    Attributes:
        logs: natural logarithm of the likelihood ratio for each of ``RATIOS``.
        hits: weighed events that lie with the version under test; of a rate, those that happened.
        others: weighed events that lie with the stable version; of a rate, observations without the event.
    """

    logs: tuple[float, ...] = (0.0,) * len(RATIOS)
    hits: int = 0
    others: int = 0

    def __add__(self, other: Evidence) -> Evidence:
        """Return the evidence of two separate sets of events together."""
        logs = tuple(mine + others for mine, others in zip(self.logs, other.logs, strict=True))
        return Evidence(logs, self.hits + other.hits, self.others + other.others)


def tolerated(probability: float, ratio: float = TOLERATED_RATIO) -> float:
    """Return the probability (0 to 1) whose odds are ``ratio`` times those of ``probability``."""
    return ratio * probability / (1 + (ratio - 1) * probability)


def weigh(evidence: Evidence, share: float, is_canary: bool, times: int = 1) -> Evidence:
    """Add events of which each lies with one of two versions.

    Args:
        evidence: evidence up to now.
        share: the canary's share of the traffic when the requests arrived, 0 to 1. With 0 or 1 all events lie with
            one version, which says nothing: the evidence stays as it is.
        is_canary: whether the events lie with the canary.
        times: number of events.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} is not between 0 and 1")
    return evidence + _bet(tolerated(share), is_canary, times) if 0 < share < 1 else evidence


def weigh_rate(evidence: Evidence, allowed: float, happened: bool, times: int = 1) -> Evidence:
    """Add observations of one version: evidence that the event happens more often than allowed.

    The rate may change with time. The null hypothesis is that its mean up to now is at most ``allowed``: the logarithm
    of the expected factor is concave in the rate, so a changing rate never gains on a constant one.

    Args:
        evidence: evidence up to now.
        allowed: largest allowed rate, above 0 and below 1.
        happened: whether the event happened in these observations.
        times: number of observations.

    Raises:
        ValueError: the rate is not above 0 and below 1.
    """
    if not 0 < allowed < 1:
        raise ValueError(f"an allowed rate of {allowed} is not above 0 and below 1")
    return evidence + _bet(allowed, happened, times)


def value(evidence: Evidence) -> float:
    """Return the evidence as one number: 1 before any event; compared with ``1 / alpha``; at most about 1e304."""
    largest = max(evidence.logs)
    mean = sum(math.exp(each - largest) for each in evidence.logs) / len(evidence.logs)
    return math.exp(min(largest + math.log(mean), _LARGEST_EXPONENT))


def _bet(chance: float, hit: bool, times: int) -> Evidence:
    """Return the evidence of equal observations whose probability is ``chance`` under the null hypothesis."""
    # Written with odds, so that no probability near 0 or 1 is subtracted from 1.
    logs = tuple(times * (hit * math.log(ratio) - math.log1p(chance * (ratio - 1))) for ratio in RATIOS)
    return Evidence(logs, times if hit else 0, 0 if hit else times)
