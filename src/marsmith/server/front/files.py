"""The front's clusters and routes as files: what Envoy does is what they say, at any time and after any end.

Envoy reads ``cds.json`` (clusters) and ``rds.json`` (routes) anew when one is replaced. The traffic that the routes
were made from is in them, as metadata that Envoy ignores, so that they cannot differ from what they say.

Clusters stay for some time after the last route to them: a request in flight needs its cluster for a second attempt.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from marsmith import state_files
from marsmith.errors import FormatError, FrontError
from marsmith.files import LockedError, lock, write_atomically
from marsmith.server.front import admin, clusters, process, routes
from marsmith.server.front.bootstrap import CLUSTERS_FILE, FILE_NAME, ROUTES_FILE
from marsmith.server.front.clusters import Upstream
from marsmith.server.front.entrance import Entrance
from marsmith.server.front.resources import render_resources, write_resources
from marsmith.server.front.scripts import Json
from marsmith.server.front.traffic import Canary, Traffic
from marsmith.server.front.upstream import current_upstream, keep_upstream

FORMAT = 1
DEADLINE_S = 10.0
# Of Envoy's statistics: the version that it has accepted, and how many it has rejected. Both listeners have routes.
_STATISTICS = {
    CLUSTERS_FILE: r"^cluster_manager\.cds\.(version_text|update_rejected)$",
    ROUTES_FILE: rf"^http\.\w+\.rds\.{routes.ROUTES}\.(version_text|update_rejected)$",
}
_STATE = "state"
_LOOK_S = 0.002
# Longer than TorchServe lets a request take by default, 120 s; and so many that no file grows.
_RETIRED_S = 600.0
_MOST_RETIRED = 16


@dataclass(frozen=True)
class Retired:
    """Traffic whose requests may still be in flight.

    Attributes:
        traffic: what it was.
        until_s: how long its clusters stay, in seconds since the epoch.
    """

    traffic: Traffic
    until_s: float


@dataclass(frozen=True)
class _Routed:
    """What the routes say of themselves."""

    traffic: Traffic = field(default_factory=Traffic)
    retired: tuple[Retired, ...] = ()
    counted: tuple[str, ...] = ()
    entrance: Entrance | None = None

    def followed_by(self, traffic: Traffic, now_s: float) -> _Routed:
        """Return the state after a change. Traffic that differs in shares only has the same clusters."""
        last = Retired(_shape(self.traffic), now_s + _RETIRED_S)
        kept: dict[Traffic, Retired] = {}
        for each in (last, *self.retired):
            if each.until_s > now_s and each.traffic != _shape(traffic):
                kept.setdefault(each.traffic, each)
        return replace(self, traffic=traffic, retired=tuple(kept.values())[:_MOST_RETIRED])


@dataclass(frozen=True)
class _Files:
    """What both files say."""

    routed: _Routed
    upstream: Upstream

    @property
    def traffic(self) -> Traffic:
        return self.routed.traffic

    def clusters(self) -> list[Json]:
        """Return the clusters."""
        return clusters.render(self.upstream, self.traffic, *(each.traffic for each in self.routed.retired))

    def routes(self) -> Json:
        """Return the routes."""
        told = {routes.METADATA: {_STATE: state_files.render(self.routed, FORMAT)}}
        return {
            **routes.render(self.traffic, self.upstream, self.routed.counted, self.routed.entrance),
            "metadata": {"filter_metadata": told},
        }


def read_traffic(folder: Path) -> Traffic:
    """Return the traffic that the files say; that of no rollout if there are none.

    Raises:
        FormatError: the routes are damaged, or of a later marsmith.
    """
    return _read(folder).traffic


def write(folder: Path, upstream: Upstream, entrance: Entrance | None = None) -> None:
    """Write both files for an Envoy that does not run yet, for the traffic that they say, and let Envoy check them.

    Args:
        folder: folder of the front's files.
        upstream: TorchServe behind the front.
        entrance: further paths; None: there are none.

    Raises:
        FrontError: Envoy refuses them.
        FormatError: the routes are damaged.
        OSError: they cannot be written.
    """
    with _locked(folder, DEADLINE_S):
        new = _Files(replace(_read(folder), entrance=entrance), upstream)
        keep_upstream(folder, upstream)
        write_resources(folder / CLUSTERS_FILE, new.clusters())
        write_resources(folder / ROUTES_FILE, [new.routes()])
    _validate(folder, new)


def lead_to(folder: Path, upstream: Upstream) -> str:
    """Let the clusters lead to another TorchServe, or to none; return their version, without waiting for Envoy.

    Raises:
        FrontError: the files are being changed for too long.
        FormatError: the routes are damaged.
        OSError: they cannot be written.
    """
    with _locked(folder, DEADLINE_S):
        keep_upstream(folder, upstream)
        return write_resources(folder / CLUSTERS_FILE, _Files(_read(folder), upstream).clusters())


def apply_traffic(folder: Path, traffic: Traffic, *, deadline_s: float = DEADLINE_S) -> None:
    """Let a running Envoy do something else, and return when it does. No request fails by it.

    Args:
        folder: folder of the front's files.
        traffic: what to do.
        deadline_s: how long to wait for Envoy, in seconds.

    Raises:
        FrontError: Envoy refuses it, or does not answer in time; the files are those from before.
        FormatError: the files are damaged.
        OSError: the files cannot be written.
    """
    with _locked(folder, deadline_s):
        upstream = current_upstream(folder)
        old = _read(folder)
        if traffic == old.traffic:
            return
        new = _Files(old.followed_by(traffic, time.time()), upstream)
        if not _is_accepted(traffic, old.traffic):
            _validate(folder, new)
        _replace(folder, new, time.monotonic() + deadline_s)


def count_models(folder: Path, models: Iterable[str], *, deadline_s: float = DEADLINE_S) -> None:
    """Let a running Envoy count the requests for these models, each apart. No request fails by it.

    Raises:
        FrontError: Envoy refuses it, or does not answer in time; the files are those from before.
        FormatError: the files are damaged.
        OSError: the files cannot be written.
    """
    with _locked(folder, deadline_s):
        old, counted = _read(folder), tuple(sorted(models))
        if counted != old.counted:
            new = _Files(replace(old, counted=counted), current_upstream(folder))
            _replace(folder, new, time.monotonic() + deadline_s)


def inlined(bootstrap: Mapping[str, Any], all_clusters: Iterable[Json], all_routes: Json) -> Json:
    """Return a bootstrap that needs no clusters or routes from files: ``--mode validate`` reads none."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "rds" in value:
            value = {key: each for key, each in value.items() if key != "rds"} | {"route_config": _untyped(all_routes)}
        return {key: walk(each) for key, each in value.items()}

    static = walk({key: value for key, value in bootstrap.items() if key != "dynamic_resources"})
    resources = static["static_resources"]
    resources["clusters"] = [*resources.get("clusters", ()), *map(_untyped, all_clusters)]
    return dict(static)


def _is_accepted(traffic: Traffic, before: Traffic) -> bool:
    """Whether Envoy has accepted all parts of it, whatever their shares: so a canary goes back without a check."""
    new, old = _shape(traffic), _shape(before)
    return set(new.canaries) <= set(old.canaries) and set(new.shadows) <= set(old.shadows)


def _shape(traffic: Traffic) -> Traffic:
    """Return traffic without its shares."""
    canaries: list[Canary] = [replace(canary, share=0) for canary in traffic.canaries]
    return replace(traffic, canaries=tuple(canaries))


def _untyped(resource: Json) -> Json:
    return {key: value for key, value in resource.items() if key != "@type"}


@contextmanager
def _locked(folder: Path, wait_s: float) -> Iterator[None]:
    try:
        with lock(folder / "files.lock", wait_s=wait_s):
            yield
    except LockedError as error:
        raise FrontError(f"the front's files are being changed: {error}", tip="try again") from None


def _validate(folder: Path, new: _Files) -> None:
    bootstrap = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    process.check_configuration(folder, inlined(bootstrap, new.clusters(), new.routes()))


def _replace(folder: Path, new: _Files, late_s: float) -> None:
    # No route ever leads to a cluster that is not there.
    steps = ((CLUSTERS_FILE, new.clusters()), (ROUTES_FILE, [new.routes()]))
    before = {name: (folder / name).read_bytes() for name in (CLUSTERS_FILE, ROUTES_FILE)}
    try:
        for name, resources in steps:
            _switch(folder, name, resources, late_s)
    except BaseException:
        for name in (ROUTES_FILE, CLUSTERS_FILE):
            with suppress(OSError):
                write_atomically(folder / name, before[name], mode=0o600)
        raise


def _switch(folder: Path, name: str, resources: Iterable[Json], late_s: float) -> None:
    """Replace a file and wait until Envoy has accepted it."""
    path, (text, version) = folder / name, render_resources(resources)
    if path.read_text(encoding="utf-8") == text:
        return
    rejected = _said(folder, name, "update_rejected")
    # Users wait for a canary to go back. After a loss of power nothing runs, and damaged routes are written anew.
    write_atomically(path, text, mode=0o600, sync=False)
    while set(_said(folder, name, "version_text")) != {version}:
        if _said(folder, name, "update_rejected") != rejected:
            raise FrontError(f"Envoy refuses its new {name}", tip=f"its log says why: {folder / process.LOG}")
        if time.monotonic() > late_s:
            raise FrontError(f"Envoy has not taken its new {name} in time", tip=f"its log is {folder / process.LOG}")
        time.sleep(_LOOK_S)


def _said(folder: Path, name: str, what: str) -> list[str]:
    lines = admin.ask(folder, f"/stats?filter={quote(_STATISTICS[name], safe='')}").splitlines()
    found = (re.fullmatch(rf'\S+\.{what}: "?(.*?)"?', line) for line in lines)
    return [each[1] for each in found if each]


def _read(folder: Path) -> _Routed:
    path = folder / ROUTES_FILE
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        told = text["resources"][0]["metadata"]["filter_metadata"][routes.METADATA][_STATE]
    except FileNotFoundError:
        return _Routed()
    except (ValueError, LookupError, TypeError):
        tip = "marsmith stop, marsmith serve"
        raise FormatError(str(path), ["does not say which traffic it is for"], tip=tip) from None
    return state_files.parse(_Routed, told, str(path), version=FORMAT)
