"""The TorchServe that the front leads to: read from the server config, and kept in ``upstream.json``."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marsmith import files, state_files
from marsmith.config.server_config import addresses
from marsmith.config.server_keys import KEY_TYPES, number
from marsmith.errors import FormatError, FrontError
from marsmith.run_state import Backend
from marsmith.server.front.clusters import Upstream
from marsmith.server.front.resources import source_of
from marsmith.server.front.scripts import LUA, Json

FILE_NAME = "upstream.json"
TOKEN_FILTER = "marsmith.tokens"  # noqa: S105 - the name of a filter
TOKENS_FILE = "ecds.json"

_FORMAT = 1


@dataclass(frozen=True)
class _Kept:
    """What ``upstream.json`` has; fields as in ``Upstream``."""

    rest_port: int
    grpc_port: int
    max_request_bytes: int
    certificate: str | None


def upstream_of(folder: Path, config: Mapping[str, str], backend: Backend | None) -> Upstream:
    """Return the TorchServe of an effective server config.

    Args:
        folder: folder of the front's files.
        config: the effective server config.
        backend: its private addresses; None: it does not run.

    Raises:
        FrontError: the certificate of gRPC cannot be read.
    """
    default = KEY_TYPES["max_request_size"].default
    largest = number(config.get("max_request_size", default)) or int(default)
    secure = addresses(config).grpc_inference.is_secure
    certificate = _digest_of(Path(config.get("certificate_file", ""))) if secure else None
    ports = (_port(backend.inference), _port(backend.grpc_inference)) if backend else (0, 0)
    return Upstream(*ports, largest, filters=(token_filter_of(folder),), certificate=certificate)


def keep_upstream(folder: Path, upstream: Upstream) -> None:
    """Write ``upstream.json``, for those who change the routes."""
    ports = (upstream.rest_port, upstream.grpc_port)
    kept = _Kept(*ports, upstream.max_request_bytes, upstream.certificate)
    files.write_atomically(folder / FILE_NAME, state_files.render(kept, _FORMAT), mode=0o600)


def current_upstream(folder: Path) -> Upstream:
    """Return the TorchServe that the front leads to now.

    Raises:
        FrontError: there is no front, or its file is damaged.
    """
    path = folder / FILE_NAME
    try:
        kept = state_files.parse(_Kept, path.read_text(encoding="utf-8"), str(path), version=_FORMAT)
    except FileNotFoundError:
        raise FrontError("the server runs without the front", tip="marsmith serve --front envoy") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FrontError(f"{path} cannot be read: {error}", tip="marsmith stop, marsmith serve") from None
    except FormatError as error:
        raise FrontError(f"{path} is damaged: {error.message}", tip="marsmith stop, marsmith serve") from None
    ports = (kept.rest_port, kept.grpc_port)
    filters = (token_filter_of(folder),)
    return Upstream(*ports, kept.max_request_bytes, filters=filters, certificate=kept.certificate)


def token_filter_of(folder: Path) -> Json:
    """Return the filter that sets the token of each attempt; its content is in a file of its own."""
    source = {"config_source": source_of(folder / TOKENS_FILE), "type_urls": [LUA]}
    return {"name": TOKEN_FILTER, "config_discovery": source}


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _digest_of(certificate_file: Path) -> str:
    """Return the SHA-256 of the first certificate of a file in PEM."""
    last = "-----END CERTIFICATE-----"
    try:
        text = certificate_file.read_text(encoding="ascii")
        first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(last) + len(last)]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
    except (OSError, ValueError) as error:
        raise FrontError(f"cannot read the certificate {certificate_file}: {error}") from None
