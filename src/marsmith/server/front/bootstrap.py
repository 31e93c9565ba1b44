"""Envoy's ``bootstrap.json``: listeners, admin socket, and where the other files are."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marsmith.config.server_config import ListenAddress, addresses
from marsmith.errors import FrontError
from marsmith.server.front import body_limit, counters, listener, tls
from marsmith.server.front.clusters import AS_WRITTEN, Api, Upstream
from marsmith.server.front.entrance import Entrance
from marsmith.server.front.resources import source_of
from marsmith.server.front.scripts import Json

FILE_NAME = "bootstrap.json"
CLUSTERS_FILE = "cds.json"
ROUTES_FILE = "rds.json"
ANSWERS_FILE = "answers.log"
# Name of the listener of its own metrics.
METRICS = "metrics"
# Relative to Envoy's working folder, because the path of a socket may have 107 bytes only.
ADMIN_SOCKET = "admin.sock"

_ADMIN_CLUSTER = "admin"
_OWNER_ONLY = 0o600
_TYPE = "type.googleapis.com/"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_PROTOCOLS: Mapping[Api, tuple[str, str]] = {"rest": ("HTTP1", "http/1.1"), "grpc": ("HTTP2", "h2")}
# Beyond it new requests are refused: bodies wait in memory while TorchServe restarts.
_MAX_HEAP_BYTES = 1 << 30
_MAX_CONNECTIONS = 10_000


@dataclass(frozen=True)
class Listening:
    """Public side of the front.

    Attributes:
        rest, grpc: addresses of the inference API.
        metrics: address of the front's own metrics.
        key_file, certificate_file: pair for those of them that use TLS; None without TLS.
    """

    rest: ListenAddress
    grpc: ListenAddress
    metrics: ListenAddress
    key_file: Path | None = None
    certificate_file: Path | None = None

    @classmethod
    def of(cls, config: Mapping[str, str], metrics: ListenAddress) -> Listening:
        """Return the public side for an effective server config."""
        where = addresses(config)
        pair = (config.get(key) for key in ("private_key_file", "certificate_file"))
        key, certificate = (Path(path) if path else None for path in pair)
        return cls(where.inference, where.grpc_inference, metrics, key, certificate)


def bootstrap(folder: Path, listening: Listening, upstream: Upstream, entrance: Entrance | None = None) -> Json:
    """Return Envoy's bootstrap configuration.

    Args:
        folder: folder of the front's files.
        listening: public side.
        upstream: TorchServe behind the front.
        entrance: further paths; None: there are none.

    Raises:
        FrontError: the host of an address is unknown.
    """
    return {
        # Without them Envoy refuses routes from a file.
        "node": {"id": "marsmith", "cluster": "marsmith"},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": _OWNER_ONLY}}},
        "bootstrap_extensions": [listener.internal_listeners()],
        "static_resources": {
            "listeners": [
                _public(folder, "rest", listening.rest, listening, upstream),
                _public(folder, "grpc", listening.grpc, listening, upstream),
                listener.second_attempts(upstream),
                {**_listener(METRICS, listening.metrics), "filter_chains": [{"filters": [_metrics_manager()]}]},
            ],
            "clusters": [_admin_cluster(), *([entrance.cluster] if entrance else [])],
        },
        "dynamic_resources": {"cds_config": source_of(folder / CLUSTERS_FILE)},
        "stats_config": counters.histogram_buckets(),
        "layered_runtime": {"layers": [{"name": "own", "static_layer": counters.RUNTIME}]},
        "overload_manager": _overload_manager(),
    }


def _public(folder: Path, api: Api, where: ListenAddress, listening: Listening, upstream: Upstream) -> Json:
    """Return the listener of an API."""
    codec, protocol = _PROTOCOLS[api]
    chain: Json = {"filters": [_manager(folder, api, codec, upstream)]}
    chains = tls.chains(chain, listening.key_file, listening.certificate_file, protocol) if where.is_secure else {}
    return {
        **_listener(api, where),
        "per_connection_buffer_limit_bytes": upstream.buffer_bytes,
        **(chains or {"filter_chains": [chain]}),
    }


def _listener(name: str, where: ListenAddress) -> Json:
    address: Json = {"address": _ip_address(where), "port_value": where.port}
    any_ipv6 = {"ipv4_compat": True} if address["address"] == "::" else {}
    return {
        "name": name,
        "address": {"socket_address": {**address, **any_ipv6}},
        # Otherwise a second Envoy of this user could bind the same port, and get some of the connections.
        "enable_reuse_port": False,
    }


def _ip_address(where: ListenAddress) -> str:
    try:
        found = socket.getaddrinfo(where.host.strip("[]"), where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise FrontError(
            f"cannot listen at {where.host}:{where.port} ({where.key}): {error.strerror}",
            tip="correct the address in config.properties",
        ) from None
    return str(found[0][4][0])


def _manager(folder: Path, api: Api, codec: str, upstream: Upstream) -> Json:
    manager = {
        "@type": f"{_TYPE}{_MANAGER}",
        "stat_prefix": api,
        "codec_type": codec,
        "rds": listener.route_source(folder / ROUTES_FILE),
        "http_filters": listener.http_filters(upstream),
        "http_protocol_options": {
            **AS_WRITTEN,
            "accept_http_10": True,
            "default_host_for_http_10": "localhost",
        },
        "server_header_transformation": "PASS_THROUGH",
        # The id of a request stays as the client wrote it.
        "request_id_extension": {
            "typed_config": {
                "@type": f"{_TYPE}envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
            }
        },
        # TorchServe has its own limit for each model.
        "stream_idle_timeout": "0s",
        "local_reply_config": _local_replies(),
        **listener.connection_options(folder / ANSWERS_FILE),
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _local_replies() -> Json:
    """Return the form of the front's own errors, which is TorchServe's, so that clients need to know one."""
    form = {"code": "%RESPONSE_CODE%", "type": "ServiceUnavailableException", "message": "%LOCAL_REPLY_BODY%"}
    equal = {"op": "EQ", "value": {"default_value": 503, "runtime_key": "marsmith.unavailable"}}
    unavailable = {"status_code_filter": {"comparison": equal}}
    # 503 would say that TorchServe has not taken the request.
    broken = {
        "filter": {"response_flag_filter": {"flags": ["UC", "UR"]}},
        "status_code": 502,
        "body": {"inline_string": "TorchServe ended while it had the request, and may have processed it"},
        "body_format_override": {"json_format": {**form, "type": "BadGatewayException"}},
    }
    own = {"filter": unavailable, "body_format_override": {"json_format": form}}
    return {"mappers": [broken, own, *body_limit.replies()]}


def _metrics_manager() -> Json:
    """Return a manager that passes one request of the admin interface: the metrics in Prometheus' form."""
    only_get = {"name": ":method", "string_match": {"exact": "GET"}}
    route = {
        "match": {"path": "/metrics", "headers": [only_get]},
        "route": {"cluster": _ADMIN_CLUSTER, "prefix_rewrite": "/stats/prometheus?usedonly"},
    }
    manager = {
        "@type": f"{_TYPE}{_MANAGER}",
        "stat_prefix": "metrics",
        "codec_type": "HTTP1",
        "route_config": {"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": [route]}]},
        "http_filters": [listener.ROUTER],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _admin_cluster() -> Json:
    endpoint = {"endpoint": {"address": {"pipe": {"path": ADMIN_SOCKET}}}}
    return {
        "name": _ADMIN_CLUSTER,
        "type": "STATIC",
        "load_assignment": {"cluster_name": _ADMIN_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _overload_manager() -> Json:
    kinds = f"{_TYPE}envoy.extensions.resource_monitors"
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"
    limits = {
        heap: {"@type": f"{kinds}.fixed_heap.v3.FixedHeapConfig", "max_heap_size_bytes": _MAX_HEAP_BYTES},
        connections: {
            "@type": f"{kinds}.downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections": _MAX_CONNECTIONS,
        },
    }
    full = {"name": heap, "threshold": {"value": 0.95}}
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [{"name": name, "typed_config": config} for name, config in limits.items()],
        "actions": [{"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [full]}],
    }
