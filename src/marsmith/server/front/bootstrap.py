"""Envoy's ``bootstrap.json``: listeners, admin socket, and where the other files are."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.config.server_config import ListenAddress, addresses
from marsmith.errors import FrontError
from marsmith.server.front.xds import extension, typed, watched

FILE_NAME = "bootstrap.json"
CLUSTERS_FILE = "cds.json"
ROUTES_FILE = "rds.json"
# Name of the routes of both public listeners.
ROUTES = "public"
# Relative to Envoy's working folder, because the path of a socket may have 107 bytes only.
ADMIN_SOCKET = "admin.sock"

_ADMIN_CLUSTER = "admin"
_OWNER_ONLY = 0o600
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_OWN_HEADERS = "x-marsmith-"
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


def bootstrap(folder: Path, listening: Listening, max_request_bytes: int) -> dict[str, Any]:
    """Return Envoy's bootstrap configuration.

    Args:
        folder: folder of the front's files.
        listening: public side.
        max_request_bytes: largest body that is kept for a repetition.

    Raises:
        FrontError: the host of an address is unknown.
    """
    limit = {"per_connection_buffer_limit_bytes": max_request_bytes}
    rest = _listener("rest", listening.rest, [_manager("rest", "HTTP1", folder)], _tls(listening, "rest"))
    grpc = _listener("grpc", listening.grpc, [_manager("grpc", "HTTP2", folder)], _tls(listening, "grpc"))
    metrics = _listener("metrics", listening.metrics, [_metrics_manager()], {})
    return {
        # Without them Envoy refuses routes from a file.
        "node": {"id": "marsmith", "cluster": "marsmith"},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": _OWNER_ONLY}}},
        "static_resources": {
            "listeners": [rest | limit, grpc | limit, metrics],
            "clusters": [_admin_cluster()],
        },
        "dynamic_resources": {"cds_config": watched(folder / CLUSTERS_FILE)},
        "overload_manager": _overload_manager(),
    }


def _listener(
    name: str, where: ListenAddress, filters: Sequence[Mapping[str, Any]], tls: Mapping[str, Any]
) -> dict[str, Any]:
    address = {"address": _ip_address(where), "port_value": where.port}
    any_ipv6 = {"ipv4_compat": True} if address["address"] == "::" else {}
    return {
        "name": name,
        "address": {"socket_address": address | any_ipv6},
        # Otherwise a second Envoy of this user could bind the same port, and get some of the connections.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": list(filters), **tls}],
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


def _manager(name: str, codec: str, folder: Path) -> dict[str, Any]:
    routes = {"route_config_name": ROUTES, "config_source": watched(folder / ROUTES_FILE)}
    own_headers = {"remove_on_match": {"key_matcher": {"prefix": _OWN_HEADERS}}}
    return extension(
        "envoy.filters.network.http_connection_manager",
        _MANAGER,
        stat_prefix=name,
        codec_type=codec,
        rds=routes,
        http_filters=[_router()],
        http_protocol_options={"accept_http_10": True, "default_host_for_http_10": "localhost"},
        # Clients cannot set what the front tells the workers.
        early_header_mutation_extensions=[
            extension(
                "envoy.http.early_header_mutation.header_mutation",
                "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=[own_headers],
            )
        ],
        server_header_transformation="PASS_THROUGH",
        # The prediction log joins both sides by the id that the client knows, unchanged.
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension={
            "typed_config": typed("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", pack_trace_reason=False)
        },
        # TorchServe has its own limit for each model.
        stream_idle_timeout="0s",
        local_reply_config=_local_replies(),
    )


def _router() -> dict[str, Any]:
    return extension(
        "envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
    )


def _local_replies() -> dict[str, Any]:
    """Return the form of the front's own errors, which is TorchServe's, so that clients need to know one."""
    form = {"code": "%RESPONSE_CODE%", "type": "ServiceUnavailableException", "message": "%LOCAL_REPLY_BODY%"}
    unavailable = {
        "status_code_filter": {
            "comparison": {"op": "EQ", "value": {"default_value": 503, "runtime_key": "marsmith.unavailable"}}
        }
    }
    return {"mappers": [{"filter": unavailable, "body_format_override": {"json_format": form}}]}


def _tls(listening: Listening, api: str) -> dict[str, Any]:
    where = listening.rest if api == "rest" else listening.grpc
    if not where.is_secure:
        return {}
    pair = {
        "certificate_chain": {"filename": str(listening.certificate_file)},
        "private_key": {"filename": str(listening.key_file)},
    }
    context = typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "tls_certificates": [pair],
            "alpn_protocols": ["http/1.1" if api == "rest" else "h2"],
        },
    )
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def _metrics_manager() -> dict[str, Any]:
    """Return a manager that passes one request of the admin interface: the metrics in Prometheus' form."""
    only_get = {"name": ":method", "string_match": {"exact": "GET"}}
    route = {
        "match": {"path": "/metrics", "headers": [only_get]},
        "route": {"cluster": _ADMIN_CLUSTER, "prefix_rewrite": "/stats/prometheus?usedonly"},
    }
    return extension(
        "envoy.filters.network.http_connection_manager",
        _MANAGER,
        stat_prefix="metrics",
        codec_type="HTTP1",
        route_config={"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": [route]}]},
        http_filters=[_router()],
    )


def _admin_cluster() -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": ADMIN_SOCKET}}}}
    return {
        "name": _ADMIN_CLUSTER,
        "type": "STATIC",
        "load_assignment": {"cluster_name": _ADMIN_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _overload_manager() -> dict[str, Any]:
    monitors = "envoy.extensions.resource_monitors"
    heap, connections = (
        "envoy.resource_monitors.fixed_heap",
        "envoy.resource_monitors.global_downstream_max_connections",
    )
    full = {"name": heap, "threshold": {"value": 0.95}}
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            extension(heap, f"{monitors}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=_MAX_HEAP_BYTES),
            extension(
                connections,
                f"{monitors}.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=_MAX_CONNECTIONS,
            ),
        ],
        "actions": [{"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [full]}],
    }
