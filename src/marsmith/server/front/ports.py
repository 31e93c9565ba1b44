"""Addresses of a server with a front: public ones of Envoy, and private ones of TorchServe behind it."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from marsmith.config.server_config import Addresses, ListenAddress
from marsmith.errors import PreflightError
from marsmith.run_state import Backend

LOOPBACK = "127.0.0.1"
# The kernel assigns ports from this one on to any process, even between our check and the start of Java.
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000


def shared_with_inference(where: Addresses) -> list[ListenAddress]:
    """Return the addresses of other APIs that are also an address of the inference API, which Envoy binds."""
    fronted = {(each.host, each.port) for each in (where.inference, where.grpc_inference)}
    others = (where.management, where.metrics, where.grpc_management)
    return [each for each in others if (each.host, each.port) in fronted]


def metrics_address(port: int) -> ListenAddress:
    """Return the address of the front's own metrics; port 0: a free one.

    Raises:
        PreflightError: no port is free.
    """
    return ListenAddress("front_metrics_port", "http", LOOPBACK, port or free_ports(1)[0])


def free_backend() -> Backend:
    """Return unused private addresses for TorchServe's inference API.

    Raises:
        PreflightError: no port is free.
    """
    rest, grpc = free_ports(2)
    return Backend(f"http://{LOOPBACK}:{rest}", f"{LOOPBACK}:{grpc}")


def private_config(config: Mapping[str, str], backend: Backend) -> dict[str, str]:
    """Return the server config of a TorchServe behind the front.

    Args:
        config: the effective server config, with the public addresses.
        backend: the private addresses.
    """
    host, _, port = backend.grpc_inference.rpartition(":")
    return {
        **config,
        "inference_address": backend.inference,
        "grpc_inference_address": host,
        "grpc_inference_port": port,
        # The values of variables are included already; the variables would restore the public addresses.
        "enable_envvars_config": "false",
    }


def free_ports(count: int) -> list[int]:
    """Return different unused ports of the loopback that the kernel does not assign.

    Raises:
        PreflightError: there are not so many.
    """
    last = int(_EPHEMERAL_PORTS.read_text().split()[0]) if _EPHEMERAL_PORTS.exists() else 32_768
    candidates = range(_FIRST_PORT, last) if last > _FIRST_PORT + 1000 else range(_FIRST_PORT, 65_536)
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(candidates, len(candidates)):
            one = held.enter_context(socket.socket())
            with suppress(OSError):
                one.bind((LOOPBACK, port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise PreflightError("no free port on the loopback", tip="ss -tln shows what listens")
