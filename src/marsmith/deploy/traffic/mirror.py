"""Copies of requests, as Envoy makes and counts them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from marsmith.deploy.front import Copies, CopyCounts
from marsmith.errors import ServerError
from marsmith.server.front import admin
from marsmith.server.front.clusters import APIS, shadow_cluster, stat_name
from marsmith.server.front.files import apply_traffic, read_traffic
from marsmith.server.front.traffic import Shadow, Traffic

# By HTTP/1.1 a copy waits for a connection, by HTTP/2 for a place on one: each way it is dropped has its counter.
_COUNTERS = {
    "sent": ("upstream_rq_total",),
    "dropped": ("upstream_rq_pending_overflow", "upstream_rq_active_overflow"),
    "under_way": ("upstream_rq_active",),
}


def copies_in(traffic: Traffic, model: str, *, of_canary: bool) -> Copies | None:
    """Return the copies of what a model's default version serves, or of its canary's; None if there are none."""
    found = traffic.shadow_of(model, of_canary=of_canary)
    return Copies(found.version, found.sample) if found else None


def set_copies(folder: Path, model: str, copies: Copies | None, *, of_canary: bool) -> None:
    """Copy a part of a model's requests to a version; None: to none. The lock of the traffic is held.

    Raises:
        ServerError: Envoy does not take it; what was in force before is.
    """
    before = read_traffic(folder)
    mine = before.shadow_of(model, of_canary=of_canary)
    others = tuple(each for each in before.shadows if each != mine)
    new = (Shadow(model, copies.version, copies.part),) if copies else ()
    try:
        apply_traffic(folder, replace(before, shadows=(*others, *new)))
    except OSError as error:
        raise ServerError(f"cannot write the front's files: {error.strerror}") from None


def copy_counts(folder: Path, model: str, *, of_canary: bool) -> CopyCounts:
    """Return how many copies of a model's requests Envoy has sent since it was started.

    Raises:
        FrontError: Envoy does not answer.
    """
    shadow = read_traffic(folder).shadow_of(model, of_canary=of_canary)
    if shadow is None:
        return CopyCounts()
    clusters = "|".join(re.escape(stat_name(shadow_cluster(shadow, api))) for api in APIS)
    every = "|".join(counter for counters in _COUNTERS.values() for counter in counters)
    wanted = quote(rf"^cluster\.({clusters})\.({every})$", safe="")
    found = [line.rpartition(": ") for line in admin.ask(folder, f"/stats?filter={wanted}").splitlines()]
    sums = {
        name: sum(int(value) for stat, _, value in found if stat.rpartition(".")[2] in counters)
        for name, counters in _COUNTERS.items()
    }
    return CopyCounts(**sums)
