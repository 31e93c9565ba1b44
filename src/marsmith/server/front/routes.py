"""Which request goes to which version: the routes of the front (Envoy's RDS).

A filter of the listener writes into each request that names a model and no version what is decided by:
``x-marsmith-model`` (API and model) and ``x-marsmith-draw`` (hash of the user, or the request id). A share is the set
of the draws whose hash is below it, so that who is in a share is in each larger one.
"""

from __future__ import annotations

from collections.abc import Iterable

from marsmith.client.http import ONCE
from marsmith.server.front import counters
from marsmith.server.front.body_limit import ENDLESS
from marsmith.server.front.clusters import (
    APIS,
    Api,
    Upstream,
    canary_cluster,
    noted_cluster,
    shadow_cluster,
    stable_cluster,
)
from marsmith.server.front.entrance import Entrance, for_model, probe_route
from marsmith.server.front.scripts import Json
from marsmith.server.front.traffic import Canary, Shadow, Traffic

ROUTES = "front"
NAMES_MODELS = "marsmith.names"
# Metadata of routes: what the access log says about a request.
METADATA = "marsmith"
_TYPE = "type.googleapis.com/"
# The draw of a sample; canaries have even seeds, so that a share and a sample are independent.
_SAMPLE_SEED = 1
# TorchServe ends a request that takes too long itself. It closes streams between their parts no sooner.
_PATIENCE = {"timeout": "0s", "idle_timeout": "3600s"}
# While Java restarts, connections are refused. A 503 is TorchServe's full queue: never sent again.
# About a minute, because each pause is a random part of its interval: Java and its workers take several seconds.
_UNTIL_BACK: Json = {
    "retry_on": "connect-failure,reset,refused-stream",
    "num_retries": 240,
    "retry_back_off": {"base_interval": "0.25s", "max_interval": "0.5s"},
}

# Sent again only if TorchServe has surely not got it. During a rollout it goes to the default version, because the
# shield of a canary would repeat it.
_ONCE: Json = {**_UNTIL_BACK, "retry_on": "connect-failure,refused-stream,reset-before-request"}


def render(traffic: Traffic, upstream: Upstream, counted: Iterable[str] = (), entrance: Entrance | None = None) -> Json:
    """Return the route configuration.

    Args:
        traffic: which version gets what.
        upstream: TorchServe behind the front.
        counted: models whose requests Envoy counts and times, each apart.
        entrance: further paths; None: there are none.
    """
    divided = {f"{api}/{model}": _division(traffic, model, api) for model in traffic.models for api in APIS}
    host = virtual_host(upstream, {"typed_per_filter_config": {NAMES_MODELS: _names_models(traffic)}})
    if divided:
        tree = {"input": _header("x-marsmith-model"), "exact_match_map": {"map": divided}}
        host["matcher"] = {"matcher_tree": tree, "on_no_match": {"matcher": host["matcher"]}}
    name, value = ONCE
    once = {"input": _header(name), "exact_match_map": {"map": {value: {"matcher": _by_api(_ONCE)}}}}
    host["matcher"] = {"matcher_tree": once, "on_no_match": {"matcher": host["matcher"]}}
    # TorchServe ends a stream with too large a message as if its connection broke.
    by_path = {ENDLESS: _action(_route(stable_cluster("grpc"), _ONCE)), **(_further(entrance) if entrance else {})}
    paths = {"input": _header(":path"), "exact_match_map": {"map": by_path}}
    host["matcher"] = {"matcher_tree": paths, "on_no_match": {"matcher": host["matcher"]}}
    invoked = {entrance.model: entrance.predict} if entrance else {}
    host["virtual_clusters"] = [counters.virtual_cluster(model, invoked.get(model, "")) for model in counted]
    return {
        "@type": f"{_TYPE}envoy.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "virtual_hosts": [host],
    }


def virtual_host(upstream: Upstream, more: Json | None = None) -> Json:
    """Return a host that sends everything to the default version, REST and gRPC."""
    return {
        "name": counters.HOST,
        "domains": ["*"],
        "request_body_buffer_limit": upstream.buffer_bytes,
        "include_request_attempt_count": True,
        "matcher": _by_api(_UNTIL_BACK),
        **(more or {}),
    }


def _further(entrance: Entrance) -> Json:
    """Return what further paths lead to, by path."""
    found = {path: _action(probe_route(asked)) for path, asked in entrance.probes.items()}
    if entrance.model:
        plain = _route(stable_cluster("rest"), _UNTIL_BACK)
        found[entrance.predict] = _action(for_model(plain, entrance.model))
    return found


def _by_api(retry_policy: Json) -> Json:
    """Send everything to the default version, REST and gRPC."""
    plain = {api: _action(_route(stable_cluster(api), retry_policy)) for api in APIS}
    grpc = {"input": _header("content-type"), "prefix_match_map": {"map": {"application/grpc": plain["grpc"]}}}
    return {"matcher_tree": grpc, "on_no_match": plain["rest"]}


def _names_models(traffic: Traffic) -> Json:
    """Let the filter know its models; without any, no request is held to be read."""
    per_route = f"{_TYPE}envoy.extensions.filters.http.lua.v3.LuaPerRoute"
    if not traffic.models:
        return {"@type": per_route, "disabled": True}
    models = {}
    for model in traffic.models:
        sticky = traffic.sticky_of(model)
        # Envoy has the names of headers in lower case; those of cookies are exact.
        name = sticky.name.lower() if sticky and sticky.kind == "header" else sticky.name if sticky else ""
        models[model] = {"kind": sticky.kind if sticky else "", "name": name}
    return {"@type": per_route, "filter_context": {"models": models}}


def _division(traffic: Traffic, model: str, api: Api) -> Json:
    """Draw who goes to the canary, and of each side which requests are copied."""
    canary = traffic.canary_of(model)
    stable = _side(model, api, None, traffic.shadow_of(model, of_canary=False))
    if canary is None:
        return stable
    trial = _side(model, api, canary, traffic.shadow_of(model, of_canary=True))
    return _if_drawn("x-marsmith-draw", canary.share, 2 * canary.seed, f"marsmith.share.{model}", trial, stable)


def _side(model: str, api: Api, canary: Canary | None, shadow: Shadow | None) -> Json:
    plain = _action(_divided_route(model, api, canary, None))
    if shadow is None:
        return plain
    copied = _action(_divided_route(model, api, canary, shadow))
    key = f"marsmith.sample.{model}"
    return _if_drawn("x-request-id", shadow.sample, _SAMPLE_SEED, key, copied, plain)


def _if_drawn(header: str, part: int, seed: int, key: str, drawn: Json, others: Json) -> Json:
    """Take a part of the values of a header, in ten-thousandths: the same ones each time."""
    fraction = {
        "@type": f"{_TYPE}envoy.extensions.matching.input_matchers.runtime_fraction.v3.RuntimeFraction",
        "seed": seed,
        "runtime_fraction": {
            "runtime_key": key,
            "default_value": {"numerator": part, "denominator": "TEN_THOUSAND"},
        },
    }
    predicate = {"input": _header(header), "custom_match": {"name": "part", "typed_config": fraction}}
    matcher = {"predicate": {"single_predicate": predicate}, "on_match": drawn}
    return {"matcher": {"matcher_list": {"matchers": [matcher]}, "on_no_match": others}}


def _divided_route(model: str, api: Api, canary: Canary | None, shadow: Shadow | None) -> Json:
    if canary is None:
        route = _route(noted_cluster(api), _UNTIL_BACK)
    elif canary.shielded:
        route = _route(canary_cluster(canary, api), _shield(canary))
        # A hung attempt stays, and a second one is sent beside it, which may take its time.
        route["route"]["hedge_policy"] = {"hedge_on_per_try_timeout": True}
    else:
        route = _route(canary_cluster(canary, api), _UNTIL_BACK)
    facts = {"model": model, "api": api, "version": canary.version if canary else ""}
    share = {"share": canary.share} if canary else {}
    limit = {"limit_ms": round(1000 * canary.per_try_timeout_s)} if canary and canary.shielded else {}
    copied = {"shadow": shadow.version or "default"} if shadow else {}
    route["metadata"] = {"filter_metadata": {METADATA: {**facts, **share, **limit, **copied}}}
    return _with_copies(route, shadow, api) if shadow else route


def _with_copies(route: Json, shadow: Shadow, api: Api) -> Json:
    mark = {"append": {"header": {"key": "x-marsmith-shadow", "value": "1"}}}
    route["route"]["request_mirror_policies"] = [
        {
            "cluster": shadow_cluster(shadow, api),
            "disable_shadow_host_suffix_append": True,
            "request_headers_mutations": [mark],
        }
    ]
    # Both sides log exactly the requests that are copied.
    route["request_headers_to_add"] = [{"header": {"key": "x-marsmith-log", "value": "1"}}]
    return route


def _shield(canary: Canary) -> Json:
    """Ask for one more attempt, which begins anew as a request of the default version (its cluster's second place)."""
    priority = f"{_TYPE}envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    return {
        "retry_on": "connect-failure,reset,refused-stream,retriable-headers",
        "retriable_headers": [{"name": "x-marsmith-retry", "present_match": True}],
        "num_retries": 1,
        "per_try_timeout": f"{canary.per_try_timeout_s:.3f}s",
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {"@type": priority, "update_frequency": 1},
        },
    }


def _route(cluster: str, retry_policy: Json) -> Json:
    return {"match": {"prefix": "/"}, "route": {"cluster": cluster, **_PATIENCE, "retry_policy": retry_policy}}


def _action(route: Json) -> Json:
    config = {"@type": f"{_TYPE}envoy.config.route.v3.Route", **route}
    return {"action": {"name": "route", "typed_config": config}}


def _header(name: str) -> Json:
    kind = f"{_TYPE}envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
    return {"name": "header", "typed_config": {"@type": kind, "header_name": name}}
