"""What the front does with the requests of each model: values that say it, and which of them make sense.

All of them are about requests that name a model and no version. Requests that name a version always get it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from marsmith.errors import UsageError
from marsmith.names import check_model_name, check_model_version

# Shares and samples are counted in these: 10000 is all.
WHOLE = 10_000
LARGEST_SEED = 2**31
# RFC 9110's token, which RFC 6265 takes for the name of a cookie too.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,100}")
# Headers of the front itself: it removes what clients send under these names.
OWN_PREFIXES = ("x-marsmith-", "x-envoy-")


@dataclass(frozen=True)
class Sticky:
    """How the front knows a user again: by the value of a header or of a cookie.

    A request without it is drawn by its request id, alone.

    Raises:
        UsageError: no such header or cookie can exist, or the front removes it.
    """

    kind: Literal["header", "cookie"]
    name: str

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is not the name of a {self.kind}",
                tip="use up to 100 letters, digits and '-' or '_', as in header:x-user-id or cookie:session",
            )
        if self.kind == "header" and self.name.lower().startswith(OWN_PREFIXES):
            raise UsageError(
                f"the front removes the header {self.name!r} from every request", tip="choose another header"
            )


@dataclass(frozen=True)
class Canary:
    """A version that gets a share of a model's requests.

    Attributes:
        model: name of the model.
        version: the version on trial.
        share: ten-thousandths of the users, or of the requests without a user, 0 to 10000.
        sticky: how a user is known again; None: each request is drawn alone.
        per_try_timeout_s: seconds after which a request that the version has not answered is repeated on the default
            version. Of no effect without the shield.
        seed: of the draw, 0 to 2**31. With one seed, everybody in a share is in each larger one.
        shielded: whether a request that fails on this version is repeated on the default version.

    Raises:
        UsageError: a value is out of range.
    """

    model: str
    version: str
    share: int
    sticky: Sticky | None = None
    per_try_timeout_s: float = 60.0
    seed: int = 0
    shielded: bool = True

    def __post_init__(self) -> None:
        check_model_name(self.model)
        check_model_version(self.version)
        _check_part("share", self.share)
        if not (math.isfinite(self.per_try_timeout_s) and 0.001 <= self.per_try_timeout_s <= 86_400):
            raise UsageError(f"a time limit of {self.per_try_timeout_s} s is not between 0.001 and 86400 seconds")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"the seed {self.seed} is not between 0 and {LARGEST_SEED}")


@dataclass(frozen=True)
class Shadow:
    """A version that gets copies of a model's requests; its replies are thrown away.

    Attributes:
        model: name of the model.
        version: the version that gets copies of what the default version serves. Empty: the default version gets
            copies of what the canary serves.
        sample: ten-thousandths of the requests, 0 to 10000, chosen by their request id.

    Raises:
        UsageError: a value is out of range.
    """

    model: str
    version: str
    sample: int

    def __post_init__(self) -> None:
        check_model_name(self.model)
        if self.version:
            check_model_version(self.version)
        _check_part("sample", self.sample)


@dataclass(frozen=True)
class Traffic:
    """What the front does at a time: the rollouts of all models.

    Raises:
        UsageError: two canaries of one model, or two shadows that copy the same requests.
    """

    canaries: tuple[Canary, ...] = ()
    shadows: tuple[Shadow, ...] = ()

    def __post_init__(self) -> None:
        _refuse_second("canary", (canary.model for canary in self.canaries))
        _refuse_second("shadow", (shadow.model for shadow in self.shadows if shadow.version))
        _refuse_second("shadow of its canary", (shadow.model for shadow in self.shadows if not shadow.version))

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose requests are divided or copied, sorted."""
        return tuple(sorted({each.model for each in self.canaries} | {each.model for each in self.shadows}))

    def canary_of(self, model: str) -> Canary | None:
        """Return the canary of a model; None if it has none."""
        return next((canary for canary in self.canaries if canary.model == model), None)

    def shadow_of(self, model: str, *, of_canary: bool) -> Shadow | None:
        """Return who gets copies of what the canary serves, or of what the default version serves."""
        return next((each for each in self.shadows if each.model == model and bool(each.version) != of_canary), None)

    def sticky_of(self, model: str) -> Sticky | None:
        """Return how users of a model are known again."""
        canary = self.canary_of(model)
        return canary.sticky if canary else None


def _check_part(what: str, value: int) -> None:
    if type(value) is not int or not 0 <= value <= WHOLE:
        raise UsageError(f"a {what} of {value} is not between 0 and {WHOLE} ten-thousandths")


def _refuse_second(what: str, models: Iterable[str]) -> None:
    listed = list(models)
    for place, model in enumerate(listed):
        if model in listed[:place]:
            raise UsageError(f"{model} has a {what} already", tip="end its rollout first")
