"""Where the front sends requests: the clusters of TorchServe (Envoy's CDS).

A version on trial has a cluster of its own for each API, although all of them are the same TorchServe: the cluster's
filter names the version. The default version is never named, so that TorchServe decides which one it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from marsmith.server.front.scripts import Json, names_version
from marsmith.server.front.traffic import Canary, Shadow, Traffic

Api = Literal["rest", "grpc"]
APIS: tuple[Api, ...] = ("rest", "grpc")
# Listener of the front's own, without a port: a request that failed on a canary begins anew there.
STABLE_LISTENER = "stable"
# TorchServe's own queue is the limit.
_UNLIMITED = 1_000_000
# A copy that does not get one of these places at once is dropped, and counted by Envoy.
SHADOW_REQUESTS = 8
# A path without a socket: TorchServe's old port could belong to another process meanwhile.
_NOBODY = "nobody.sock"
_TYPE = "type.googleapis.com/"
# Handlers look for headers by their names as clients write them, and Envoy has them in lower case otherwise.
AS_WRITTEN: Json = {
    "header_key_format": {
        "stateful_formatter": {
            "name": "preserve_case",
            "typed_config": {
                "@type": f"{_TYPE}envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"
            },
        }
    }
}
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CODEC = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"

_PLAIN: Json = {
    "name": "envoy.transport_sockets.raw_buffer",
    "typed_config": {"@type": f"{_TYPE}envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"},
}


@dataclass(frozen=True)
class Upstream:
    """TorchServe behind the front.

    Attributes:
        rest_port: port of its inference API over REST; 0: it does not run, and requests wait.
        grpc_port: port of its inference API over gRPC; 0 as well.
        max_request_bytes: the largest request that it takes.
        host: its address.
        filters: further filters of Envoy's, for each request on its way to TorchServe.
        certificate: SHA-256 in hex of the certificate that its gRPC presents; None without TLS. REST has none here.
    """

    rest_port: int
    grpc_port: int
    max_request_bytes: int = 6_553_500
    host: str = "127.0.0.1"
    filters: tuple[Json, ...] = ()
    certificate: str | None = None

    def address(self, api: Api) -> Json:
        """Return the address of an API."""
        port = self.rest_port if api == "rest" else self.grpc_port
        return {"socket_address": {"address": self.host, "port_value": port}} if port else {"pipe": {"path": _NOBODY}}

    @property
    def buffer_bytes(self) -> int:
        """How much of a request or reply may be held, so that it can be sent again; with room for what is added."""
        return self.max_request_bytes + 65_536


def stable_cluster(api: Api) -> str:
    """Return the cluster of the default version."""
    return f"stable/{api}"


def noted_cluster(api: Api) -> str:
    """Return the cluster of the default version for a model whose requests are divided or copied."""
    # Over REST the status says everything, and the handler sees the headers.
    return "noted/grpc" if api == "grpc" else stable_cluster(api)


def canary_cluster(canary: Canary, api: Api) -> str:
    """Return the cluster of a version that gets a share."""
    return f"canary/{api}/{canary.model}@{canary.version}"


def shadow_cluster(shadow: Shadow, api: Api) -> str:
    """Return the cluster of a version that gets copies."""
    return f"shadow/{api}/{shadow.model}@{shadow.version}"


def stat_name(cluster: str) -> str:
    """Return the name of a cluster in Envoy's metrics, which end a name at its first dot."""
    return cluster.replace(".", "~")


def render(upstream: Upstream, *traffics: Traffic) -> list[Json]:
    """Return every cluster that one of ``traffics`` needs, in a fixed order."""
    clusters = [_cluster(upstream, stable_cluster(api), api) for api in APIS]
    clusters.append(_cluster(upstream, noted_cluster("grpc"), "grpc", names_version(None, shielded=False)))
    clusters += [each for traffic in traffics for each in _of_versions(upstream, traffic)]
    by_name = {str(each["name"]): each for each in reversed(clusters)}
    return [by_name[name] for name in sorted(by_name)]


def _of_versions(upstream: Upstream, traffic: Traffic) -> Iterator[Json]:
    for api in APIS:
        for canary in traffic.canaries:
            lua = names_version(canary.version, shielded=canary.shielded)
            cluster = _cluster(upstream, canary_cluster(canary, api), api, lua)
            yield _with_second_place(cluster) if canary.shielded else cluster
        for shadow in traffic.shadows:
            lua = names_version(shadow.version or None, shielded=False)
            cluster = _cluster(upstream, shadow_cluster(shadow, api), api, lua)
            yield {**cluster, "circuit_breakers": _limits(SHADOW_REQUESTS)}


def _cluster(upstream: Upstream, name: str, api: Api, *filters: Json) -> Json:
    return {
        "@type": f"{_TYPE}envoy.config.cluster.v3.Cluster",
        "name": name,
        "alt_stat_name": stat_name(name),
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": upstream.buffer_bytes,
        "circuit_breakers": _limits(_UNLIMITED),
        "load_assignment": {"cluster_name": name, "endpoints": [_place(0, upstream.address(api))]},
        "typed_extension_protocol_options": {_PROTOCOL: _protocol(api, (*filters, *upstream.filters))},
        **(_tls(upstream.certificate) if api == "grpc" and upstream.certificate else {}),
    }


def _tls(certificate: str) -> Json:
    """Return TLS that trusts exactly one certificate: TorchServe has one switch for the TLS of both gRPC APIs."""
    context = {
        "@type": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {"verify_certificate_hash": [certificate]},
        },
    }
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def _protocol(api: Api, filters: tuple[Json, ...]) -> Json:
    protocol = {"http_protocol_options": AS_WRITTEN} if api == "rest" else {"http2_protocol_options": {}}
    codec = {"name": "envoy.filters.http.upstream_codec", "typed_config": {"@type": f"{_TYPE}{_CODEC}"}}
    http_filters = {"http_filters": [*filters, codec]} if filters else {}
    return {"@type": f"{_TYPE}{_PROTOCOL}", "explicit_http_config": protocol, **http_filters}


def _place(priority: int, address: Json) -> Json:
    return {"priority": priority, "lb_endpoints": [{"endpoint": {"address": address}}]}


def _with_second_place(cluster: Json) -> Json:
    """Send second attempts where requests of the default version begin: they get its patience, and one attempt here."""
    internal = {"envoy_internal_address": {"server_listener_name": STABLE_LISTENER}}
    (first,), second = cluster["load_assignment"]["endpoints"], _place(1, internal)
    tls = cluster.get("transport_socket")
    if tls is not None:
        # There is no TLS on the way through the front itself.
        mark = {"filter_metadata": {"envoy.transport_socket_match": {"tls": True}}}
        first = {**first, "lb_endpoints": [{**each, "metadata": mark} for each in first["lb_endpoints"]]}
        cluster = {key: value for key, value in cluster.items() if key != "transport_socket"}
        cluster["transport_socket_matches"] = [
            {"name": "tls", "match": {"tls": True}, "transport_socket": tls},
            {"name": "plain", "match": {}, "transport_socket": _PLAIN},
        ]
    return {**cluster, "load_assignment": {**cluster["load_assignment"], "endpoints": [first, second]}}


def _limits(count: int) -> Json:
    kinds = ("max_connections", "max_pending_requests", "max_requests")
    # Envoy allows three retries at a time if nothing is said.
    return {"thresholds": [{**dict.fromkeys(kinds, count), "max_retries": _UNLIMITED}]}
