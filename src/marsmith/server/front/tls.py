"""TLS of a public listener, and its answer to a client that speaks none."""

from __future__ import annotations

from pathlib import Path

from marsmith.server.front.listener import ROUTER
from marsmith.server.front.scripts import Json

_TYPE = "type.googleapis.com/"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_INSPECTOR = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
# TorchServe's status and, but for the name, its words.
_FORBIDDEN = 403
_ONLY_HTTPS = '{"status": "This server only accepts HTTPS requests"}\n'


def chains(secure: Json, key: Path | None, certificate: Path | None, protocol: str) -> Json:
    """Return a listener's filter chains: one for TLS, and one that refuses everything else.

    Args:
        secure: the chain of those who speak TLS 1.2 or 1.3.
        key: private key in PEM.
        certificate: certificate in PEM.
        protocol: name of the protocol in ALPN.
    """
    pair = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
    common = {
        "tls_certificates": [pair],
        "alpn_protocols": [protocol],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
    }
    kind = f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    context = {"@type": kind, "common_tls_context": common}
    inspector = {"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": f"{_TYPE}{_INSPECTOR}"}}
    return {
        "listener_filters": [inspector],
        "filter_chains": [
            {**secure, "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}},
            {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [_refusal()]},
        ],
    }


def _refusal() -> Json:
    answer = {"status": _FORBIDDEN, "body": {"inline_string": _ONLY_HTTPS}}
    routes = [{"match": {"prefix": "/"}, "direct_response": answer}]
    manager = {
        "@type": f"{_TYPE}{_MANAGER}",
        "stat_prefix": "plain",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "plain", "domains": ["*"], "routes": routes}]},
        "http_filters": [ROUTER],
        "common_http_protocol_options": {"max_requests_per_connection": 1},
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
