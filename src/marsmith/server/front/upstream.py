"""TorchServe as Envoy sees it: private addresses, the largest request, and the filter that sets the token."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from marsmith.client.hosts import host_of
from marsmith.config.server_config import addresses
from marsmith.config.server_keys import KEY_TYPES, number
from marsmith.run_state import Backend
from marsmith.server.front.xds import extension, type_url, typed, watched

Api = Literal["rest", "grpc"]
APIS: tuple[Api, ...] = ("rest", "grpc")
TOKEN_FILTER = "marsmith.tokens"  # noqa: S105 - the name of a filter
TOKENS_FILE = "ecds.json"
LUA = "envoy.extensions.filters.http.lua.v3.Lua"

_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_LIMITED = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
# The requests that wait while TorchServe restarts; Envoy's default of 3 retries would refuse the fourth.
_MAX_REQUESTS = 4096
# A path without a socket: TorchServe's old port could belong to another process meanwhile.
_NOBODY = "nobody.sock"


@dataclass(frozen=True)
class Upstream:
    """TorchServe behind the front.

    Attributes:
        backend: its private addresses; None: it does not run, and requests wait.
        max_request_bytes: largest body that is kept for a repetition.
        filters: filters for each attempt.
        certificate: SHA-256 in hex of the certificate that TorchServe's gRPC presents; None without TLS.
    """

    backend: Backend | None
    max_request_bytes: int
    filters: tuple[Mapping[str, Any], ...] = ()
    certificate: str | None = None

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, str], backend: Backend | None) -> Upstream:
        """Return the TorchServe of an effective server config.

        Args:
            folder: folder of the front's files.
            config: the effective server config.
            backend: its private addresses; None: it does not run.

        Raises:
            OSError: the certificate cannot be read.
            ValueError: it is not a certificate in PEM.
        """
        default = KEY_TYPES["max_request_size"].default
        largest = number(config.get("max_request_size", default)) or int(default)
        secure = addresses(config).grpc_inference.is_secure
        certificate = _digest_of(Path(config["certificate_file"])) if secure else None
        return cls(backend, largest, (_token_filter(folder),), certificate)

    def cluster(self, name: str, api: Api, filters: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Return a cluster of TorchServe.

        Args:
            name: name of the cluster.
            api: the API.
            filters: filters for each attempt, before those of every cluster.
        """
        endpoint = {"endpoint": {"address": self.address(api)}}
        return typed(
            "envoy.config.cluster.v3.Cluster",
            name=name,
            type="STATIC",
            connect_timeout="1s",
            per_connection_buffer_limit_bytes=self.max_request_bytes,
            circuit_breakers={"thresholds": [dict.fromkeys(_LIMITED, _MAX_REQUESTS)]},
            load_assignment={"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            typed_extension_protocol_options={_HTTP: self._protocol(api, filters)},
            **self.tls(api),
        )

    def address(self, api: Api) -> dict[str, Any]:
        """Return the address of an API. While TorchServe does not run, it refuses connections."""
        if self.backend is None:
            return {"pipe": {"path": _NOBODY}}
        where = self.backend.inference.partition("//")[2] if api == "rest" else self.backend.grpc_inference
        return {"socket_address": {"address": host_of(where), "port_value": int(where.rpartition(":")[2])}}

    def tls(self, api: Api) -> dict[str, Any]:
        """Return the fields of a cluster for gRPC over TLS, which trusts exactly the server's own certificate.

        TorchServe has one switch for both gRPC APIs, and the management API keeps its public address.
        """
        if api != "grpc" or self.certificate is None:
            return {}
        validation = {"verify_certificate_hash": [self.certificate]}
        context = typed(
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            common_tls_context={"alpn_protocols": ["h2"], "validation_context": validation},
        )
        return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}

    def _protocol(self, api: Api, filters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        options = "http_protocol_options" if api == "rest" else "http2_protocol_options"
        kind = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
        codec = extension("envoy.filters.http.upstream_codec", kind)
        chain = [*filters, *self.filters, codec]
        return typed(_HTTP, explicit_http_config={options: {}}, http_filters=chain)


def _token_filter(folder: Path) -> dict[str, Any]:
    """Return the filter that sets the token; its content is in a file of its own."""
    source = {"config_source": watched(folder / TOKENS_FILE), "type_urls": [type_url(LUA)]}
    return {"name": TOKEN_FILTER, "config_discovery": source}


def _digest_of(certificate_file: Path) -> str:
    """Return the SHA-256 of the first certificate of a file in PEM."""
    text, last = certificate_file.read_text(encoding="ascii"), "-----END CERTIFICATE-----"
    first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(last) + len(last)]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
