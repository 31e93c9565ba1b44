"""What the front's routes and clusters look like to Envoy: golden files, and what holds for any traffic."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.config.platform import Platform
from marsmith.server.front import clusters, routes, scripts
from marsmith.server.front.clusters import Upstream
from marsmith.server.front.entrance import Entrance
from marsmith.server.front.traffic import WHOLE, Canary, Shadow, Sticky, Traffic
from support.golden import golden, short

UPSTREAM = Upstream(18080, 17070)
TRAFFICS = {
    "plain": Traffic(),
    "canary": Traffic((Canary("cats", "2.0", 500, Sticky("header", "X-User-Id"), per_try_timeout_s=1.5, seed=7),)),
    "shadow": Traffic((), (Shadow("cats", "2.0", 1000),)),
    "both": Traffic((Canary("cats", "2.0", 2500, shielded=False),), (Shadow("cats", "", 5000),)),
}
names = st.sampled_from(["cats", "a.b", "a_b", "a-b", "x"])
versions = st.sampled_from(["1", "1.0", "1_0", "1-0", "1+a", "2.0"])
parts = st.integers(0, WHOLE)
stickies = st.none() | st.builds(Sticky, st.just("header"), st.just("x-user-id"))
canaries = st.builds(Canary, names, versions, parts, stickies, st.just(2.0), st.integers(0, 1000), st.booleans())
shadows = st.builds(Shadow, names, versions | st.just(""), parts)
traffics = st.builds(
    lambda canaries, shadows: Traffic(tuple(canaries), tuple(shadows)),
    st.lists(canaries, max_size=2, unique_by=lambda canary: canary.model),
    st.lists(shadows, max_size=2, unique_by=lambda shadow: (shadow.model, bool(shadow.version))),
)


def walk(value: Any, key: str) -> Iterator[Any]:
    """Yield the value of each ``key`` at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from walk(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, key)


def test_the_routes_of_a_platform_are_the_golden_ones() -> None:
    platform = Platform("Vertex AI", 8080, "/v1/health", "/v1/endpoints/7:predict")
    entrance = Entrance.of(platform, ["cats", "cats"], 8083)
    assert Entrance.of(platform, ["cats", "dogs"], 8083).model == "", "requests without a model need exactly one"
    rendered = {"cluster": entrance.cluster, "rds": routes.render(Traffic(), UPSTREAM, ["cats"], entrance)}
    golden("platform.json", short(rendered))


@pytest.mark.parametrize("name", TRAFFICS)
def test_the_files_are_the_golden_ones(name: str) -> None:
    rendered = {
        "rds": routes.render(TRAFFICS[name], UPSTREAM),
        "cds": [each for each in clusters.render(UPSTREAM, TRAFFICS[name]) if name == "plain" or "@" in each["name"]],
    }
    golden(f"{name}.json", short(rendered))


@given(traffics, parts)
def test_a_change_of_the_share_changes_nothing_but_the_share(traffic: Traffic, part: int) -> None:
    # Envoy takes a draw if its hash is below the share, so that who is in a share is in each larger one.
    changed = replace(traffic, canaries=tuple(replace(canary, share=part) for canary in traffic.canaries))
    before, after = routes.render(traffic, UPSTREAM), routes.render(changed, UPSTREAM)
    shares = [value for found in walk(after, "runtime_fraction") for value in shares_of(found)]
    assert shares == [part] * len(shares)
    assert len(shares) == 2 * len(traffic.canaries)  # REST and gRPC
    assert without_shares(before) == without_shares(after)
    assert clusters.render(UPSTREAM, traffic) == clusters.render(UPSTREAM, changed)


def shares_of(fraction: Any) -> Iterator[int]:
    if "numerator" in fraction["default_value"] and not fraction["runtime_key"].startswith("marsmith.sample."):
        assert fraction["default_value"]["denominator"] == "TEN_THOUSAND"
        yield fraction["default_value"]["numerator"]


def without_shares(config: Any) -> Any:
    config = copy.deepcopy(config)
    for fraction in walk(config, "runtime_fraction"):
        if fraction["runtime_key"].startswith("marsmith.share."):
            fraction["default_value"]["numerator"] = 0
    for facts in walk(config, "marsmith"):
        facts.pop("share", None)
    return config


@given(traffics)
def test_every_route_has_a_cluster_and_every_cluster_of_a_version_a_route(traffic: Traffic) -> None:
    rendered = routes.render(traffic, UPSTREAM)
    there = {each["name"] for each in clusters.render(UPSTREAM, traffic)}
    assert set(walk(rendered, "cluster")) <= there
    assert len(there) == len({clusters.stat_name(name) for name in there})
    assert not any("." in clusters.stat_name(name) for name in there)


@given(traffics, traffics)
def test_clusters_of_two_times_are_there_at_once(before: Traffic, after: Traffic) -> None:
    both = {each["name"] for each in clusters.render(UPSTREAM, before, after)}
    for traffic in (before, after):
        assert {each["name"] for each in clusters.render(UPSTREAM, traffic)} <= both


@given(traffics)
def test_the_same_traffic_gives_the_same_files(traffic: Traffic) -> None:
    assert json.dumps(routes.render(traffic, UPSTREAM)) == json.dumps(routes.render(copy.deepcopy(traffic), UPSTREAM))


@given(traffics)
def test_the_stable_version_is_never_named(traffic: Traffic) -> None:
    for cluster in clusters.render(UPSTREAM, traffic):
        source = "".join(walk(cluster, "inline_string"))
        named = cluster["name"].rpartition("@")[2] if "@" in cluster["name"] else ""
        assert f"local VERSION = {scripts.lua_text(named) if named else 'nil'}\n" in source or not source
        assert source or cluster["name"].startswith("stable/")


@given(st.text())
def test_a_text_in_lua_is_that_text(text: str) -> None:
    written = scripts.lua_text(text)
    assert written[0] == written[-1] == '"'
    plain, at = bytearray(), 1
    while at < len(written) - 1:
        escaped = written[at] == "\\"
        plain.append(int(written[at + 1 : at + 4]) if escaped else ord(written[at]))
        at += 4 if escaped else 1
    assert plain.decode() == text


@given(traffics)
def test_a_reply_may_take_its_time_whole_or_in_parts(traffic: Traffic) -> None:
    """Envoy ends a reply after 15 s unless it is told otherwise, streams too."""
    found = [
        each for each in walk(routes.render(traffic, UPSTREAM), "route") if isinstance(each, dict) and "cluster" in each
    ]
    assert found
    assert all((each["timeout"], each["idle_timeout"]) == ("0s", "3600s") for each in found)


@given(traffics)
def test_a_503_is_no_reason_to_send_a_request_again(traffic: Traffic) -> None:
    for policy in walk(routes.render(traffic, UPSTREAM), "retry_policy"):
        assert "5xx" not in policy["retry_on"]
        assert "retriable_status_codes" not in policy


def test_with_tls_a_second_attempt_still_finds_its_way_through_the_front() -> None:
    rendered = clusters.render(replace(UPSTREAM, certificate="ab" * 32), TRAFFICS["canary"])
    (cluster,) = [each for each in rendered if each["name"] == "canary/grpc/cats@2.0"]
    assert "transport_socket" not in cluster
    tls, plain = cluster["transport_socket_matches"]
    assert tls["transport_socket"]["name"] == "envoy.transport_sockets.tls"
    assert plain["transport_socket"]["name"] == "envoy.transport_sockets.raw_buffer"
    first, second = cluster["load_assignment"]["endpoints"]
    assert tls["match"] == first["lb_endpoints"][0]["metadata"]["filter_metadata"]["envoy.transport_socket_match"]
    assert "metadata" not in second["lb_endpoints"][0]
