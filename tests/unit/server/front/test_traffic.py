"""Which traffic makes sense."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from marsmith.errors import UsageError
from marsmith.server.front.traffic import Canary, Shadow, Sticky, Traffic

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "share below": (lambda: Canary("m", "2.0", -1), "a share of -1"),
    "share above": (lambda: Canary("m", "2.0", 10_001), "a share of 10001"),
    "share not whole": (lambda: Canary("m", "2.0", 0.5), "a share of 0.5"),  # type: ignore[arg-type]
    "share a truth": (lambda: Canary("m", "2.0", True), "a share of True"),
    "sample above": (lambda: Shadow("m", "2.0", 20_000), "a sample of 20000"),
    "time limit": (lambda: Canary("m", "2.0", 1, per_try_timeout_s=0), "a time limit of 0 s"),
    "no time limit": (lambda: Canary("m", "2.0", 1, per_try_timeout_s=math.nan), "a time limit of nan s"),
    "seed": (lambda: Canary("m", "2.0", 1, seed=-1), "the seed -1"),
    "model": (lambda: Canary("a/b", "2.0", 1), "'a/b' is not a model name"),
    "version": (lambda: Canary("m", "2 0", 1), "'2 0' is not a model version"),
    "version of a shadow": (lambda: Shadow("m", "a/b", 1), "'a/b' is not a model version"),
    "cookie": (lambda: Sticky("cookie", "a b"), "'a b' is not the name of a cookie"),
    "cookie with a line": (lambda: Sticky("cookie", "a\nb"), "is not the name of a cookie"),
    "header": (lambda: Sticky("header", "x:y"), "'x:y' is not the name of a header"),
    "no header": (lambda: Sticky("header", ""), "'' is not the name of a header"),
    "header of the front": (lambda: Sticky("header", "X-Marsmith-User"), "the front removes the header"),
    "two canaries": (lambda: Traffic((Canary("m", "2.0", 1), Canary("m", "3.0", 1))), "m has a canary already"),
    "two shadows": (lambda: Traffic((), (Shadow("m", "2", 1), Shadow("m", "3", 1))), "m has a shadow already"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_traffic_that_makes_no_sense_is_refused_and_named(wrong: str) -> None:
    make, message = WRONG[wrong]
    with pytest.raises(UsageError, match=message):
        make()


def test_each_model_has_its_own_rollout() -> None:
    traffic = Traffic(
        (Canary("b", "2.0", 100), Canary("a", "2.0", 500, Sticky("cookie", "session"))),
        (Shadow("c", "3.0", 1000), Shadow("b", "", 500)),
    )
    assert traffic.models == ("a", "b", "c")
    assert traffic.canary_of("b") == Canary("b", "2.0", 100)
    assert traffic.canary_of("c") is None
    assert (traffic.sticky_of("a"), traffic.sticky_of("b")) == (Sticky("cookie", "session"), None)
    assert traffic.shadow_of("b", of_canary=True) == Shadow("b", "", 500)
    assert traffic.shadow_of("b", of_canary=False) is None
    assert traffic.shadow_of("c", of_canary=False) == Shadow("c", "3.0", 1000)
