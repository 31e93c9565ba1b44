"""Where the inference API over gRPC is, and whether it speaks TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marsmith.client.grpc import Tls
from marsmith.errors import UsageError


@dataclass(frozen=True)
class GrpcTarget:
    """An address, ``host:port``, and how to speak TLS there; None: not at all."""

    address: str
    tls: Tls | None


def grpc_target(grpc: str | None, inference: str, ca_file: Path | None) -> GrpcTarget | None:
    """Read the address of a gRPC API; without a scheme it speaks TLS where the inference API over REST does.

    Raises:
        UsageError: the scheme is neither ``grpc`` nor ``grpcs``.
    """
    if grpc is None:
        return None
    scheme, _, address = grpc.rpartition("://")
    if scheme not in {"", "grpc", "grpcs"}:
        raise UsageError(f"{grpc!r} is not the address of a gRPC API", tip="write it as host:7070")
    secure = inference.startswith("https://") if not scheme else scheme == "grpcs"
    return GrpcTarget(address, Tls(ca_file) if secure else None)
