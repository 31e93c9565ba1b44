"""What a listener needs for the routes: a filter that names models, the access log, and the second attempts."""

from __future__ import annotations

from pathlib import Path

from marsmith.server.front import body_limit, routes, scripts
from marsmith.server.front.clusters import STABLE_LISTENER, Upstream
from marsmith.server.front.resources import source_of
from marsmith.server.front.scripts import Json
from marsmith.server.front.traffic import OWN_PREFIXES

_TYPE = "type.googleapis.com/"
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER: Json = {
    "name": "envoy.filters.http.router",
    "typed_config": {
        "@type": f"{_TYPE}envoy.extensions.filters.http.router.v3.Router",
        # Replies stay as TorchServe gives them.
        "suppress_envoy_headers": True,
    },
}
# Enough for a UUID or a trace id; a client may send anything.
_LONGEST_ID = 256
_LINE = {
    "at": "%START_TIME(%s.%6f)%",
    "model": "%METADATA(ROUTE:marsmith:model)%",
    "version": "%METADATA(ROUTE:marsmith:version)%",
    "api": "%METADATA(ROUTE:marsmith:api)%",
    "share": "%METADATA(ROUTE:marsmith:share)%",
    "shadow": "%METADATA(ROUTE:marsmith:shadow)%",
    "draw": f"%REQ(x-marsmith-draw):{_LONGEST_ID}%",
    "request_id": f"%REQ(x-request-id):{_LONGEST_ID}%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS_NUMBER%",
    "item": "%DYNAMIC_METADATA(marsmith:item)%",
    "failed": "%DYNAMIC_METADATA(marsmith:failed)%",
    "second_ms": "%DYNAMIC_METADATA(marsmith:second_ms)%",
    "limit_ms": "%METADATA(ROUTE:marsmith:limit_ms)%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "duration_ms": "%DURATION%",
    "flags": "%RESPONSE_FLAGS%",
}


def http_filters(upstream: Upstream) -> list[Json]:
    """Return the filters of a public listener."""
    return [*body_limit.filters(upstream), scripts.names_models(routes.NAMES_MODELS), ROUTER]


def connection_options(access_log: Path) -> Json:
    """Return what a public listener's connection manager must have besides its filters and its routes.

    It removes the front's own headers from requests, gives each request an id, and logs the requests of models whose
    requests are divided or copied. The id in a reply is TorchServe's own, which the bodies of errors have too.
    """
    return {
        "early_header_mutation_extensions": [_without_own_headers()],
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "access_log": [_access_log(access_log)],
    }


def route_source(file: Path) -> Json:
    """Return where a connection manager gets its routes: from the file, and anew each time it is replaced."""
    return {"route_config_name": routes.ROUTES, "config_source": source_of(file)}


def second_attempts(upstream: Upstream) -> Json:
    """Return the listener of requests that have failed on a canary: inside of Envoy, it has no port.

    It needs the bootstrap extension ``envoy.bootstrap.internal_listener``: ``internal_listeners()``.
    """
    told = {"append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "header": {"key": "x-marsmith-second", "value": "1"}}
    host = routes.virtual_host(upstream, {"response_headers_to_add": [told]})
    manager = {
        "@type": f"{_TYPE}{_HCM}",
        "stat_prefix": STABLE_LISTENER,
        "route_config": {"name": STABLE_LISTENER, "virtual_hosts": [host]},
        "server_header_transformation": "PASS_THROUGH",
        "generate_request_id": False,
        "preserve_external_request_id": True,
        "stream_idle_timeout": "0s",
        "http_filters": [ROUTER],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "name": STABLE_LISTENER,
        "internal_listener": {},
        "per_connection_buffer_limit_bytes": upstream.buffer_bytes,
        "filter_chains": [{"filters": filters}],
    }


def internal_listeners() -> Json:
    """Return the bootstrap extension that ``second_attempts`` needs."""
    kind = f"{_TYPE}envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    return {"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": kind}}


def _without_own_headers() -> Json:
    kind = f"{_TYPE}envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    removed = [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in OWN_PREFIXES]
    return {"name": "marsmith.own_headers", "typed_config": {"@type": kind, "mutations": removed}}


def _access_log(path: Path) -> Json:
    kind = f"{_TYPE}envoy.extensions.access_loggers.file.v3.FileAccessLog"
    divided = {"header_filter": {"header": {"name": "x-marsmith-draw", "present_match": True}}}
    config = {"@type": kind, "path": str(path), "log_format": {"json_format": _LINE}}
    return {"name": "envoy.access_loggers.file", "filter": divided, "typed_config": config}
