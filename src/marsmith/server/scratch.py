"""A server of its own for measuring: the project's server config, free ports, an empty model store, gone afterwards.

It speaks what the project's server speaks, tokens and TLS included, but at the loopback only and with a certificate of
its own: the project's need not be good for the loopback.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from marsmith.archive.admit import admit
from marsmith.child_processes import removed_at_end, temporary_folder
from marsmith.config import admission_policy
from marsmith.config.certificate import folder_of, make_pair, write_pair
from marsmith.config.properties import render_properties
from marsmith.config.server_config import addresses, effective_config, read_server_config
from marsmith.config.tls import uses_tls
from marsmith.errors import ServerError
from marsmith.project import Project
from marsmith.server import launch, lifecycle
from marsmith.server.preflight import busy_port

_HOST = "127.0.0.1"
_APIS = ("inference", "management", "metrics")
# What would lead it to the project's server, or to files of it.
_NOT_TAKEN_OVER = ("model_snapshot", "initial_worker_port", "keystore", "keystore_pass", "keystore_type")
# The kernel gives ports from this one on to whoever asks for any, also between our look and the start of Java.
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000
_TRIES = 3


@contextmanager
def scratch_server(project: Project, archives: Mapping[str, Path] | None = None) -> Iterator[Project]:
    """Run a server beside any that runs already, and stop it at the end, also when this process is killed.

    Args:
        project: whose server config is used, but for addresses, certificate and the model store.
        archives: file name in the store -> archive that is served from the start; more can be put there and registered.

    Yields:
        The project of the scratch server: its ``model_store`` is where archives go.

    Raises:
        ArchiveError: the project does not admit an archive. What is put there later is the caller's own.
        PreflightError: the project's server config is not one to start with.
        ServerError: the server does not start.
    """
    with temporary_folder("marsmith-") as folder:
        scratch = Project(folder)
        scratch.specs.mkdir(parents=True)
        scratch.model_store.mkdir()
        policy = admission_policy(project)
        for name, path in (archives or {}).items():
            admit(path, policy)
            shutil.copy(path, scratch.model_store / name)
        with removed_at_end(launch.temporary_folder(scratch)):
            _start(scratch, effective_config(project, read_server_config(project), os.environ))
            try:
                yield scratch
            finally:
                # Nobody waits for an answer any more.
                lifecycle.stop(scratch, timeout_s=0)


def scratch_config(scratch: Project, config: Mapping[str, str]) -> dict[str, str]:
    """Return the server config of a scratch server, on ports that nothing uses now.

    Args:
        scratch: its project.
        config: the effective one of the project that it stands for.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_TAKEN_OVER}
    return {
        **kept,
        **_free_addresses(config),
        **(_own_pair(scratch) if uses_tls(config) else {}),
        "model_store": str(scratch.model_store),
        "load_models": "all",
        "enable_model_api": "true",
        # What variables say has been filled in; they would lead to the project's ports again.
        "enable_envvars_config": "false",
    }


def _start(scratch: Project, config: Mapping[str, str]) -> None:
    """Start the server; on other ports where somebody was quicker to take one."""
    for tries_left in reversed(range(_TRIES)):
        own = scratch_config(scratch, config)
        scratch.server_config.write_text(render_properties(own), encoding="ascii")
        try:
            lifecycle.start(scratch, lifecycle.StartOptions(outlives=False, strict=True))
        except ServerError:
            # What was started has ended: a port that is in use is somebody else's.
            if not tries_left or not any(map(busy_port, addresses(own).all())):
                raise
        else:
            return


def _own_pair(scratch: Project) -> dict[str, str]:
    key, certificate = write_pair(folder_of(scratch), make_pair(), force=True)
    return {"private_key_file": str(key), "certificate_file": str(certificate)}


def _free_addresses(config: Mapping[str, str]) -> dict[str, str]:
    """Return the keys that put every API on a free port of the loopback, with the scheme that it has."""
    where = addresses(config)
    ports = _free_ports(len(_APIS) + 2)
    schemes = (where.inference.scheme, where.management.scheme, where.metrics.scheme)
    rest = {f"{api}_address": f"{scheme}://{_HOST}:{ports.pop()}" for api, scheme in zip(_APIS, schemes, strict=True)}
    grpc = {f"grpc_{api}_port": str(ports.pop()) for api in ("inference", "management")}
    return {**rest, **grpc, "grpc_inference_address": _HOST, "grpc_management_address": _HOST}


def _free_ports(count: int) -> list[int]:
    """Return different ports of the loopback that nothing uses now, and that the kernel gives to nobody."""
    last = int(_EPHEMERAL_PORTS.read_text().split()[0]) if _EPHEMERAL_PORTS.exists() else 32_768
    candidates = range(_FIRST_PORT, last) if last > _FIRST_PORT + 1000 else range(_FIRST_PORT, 65_536)
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(candidates, len(candidates)):
            one = held.enter_context(socket.socket())
            with suppress(OSError):
                one.bind((_HOST, port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise ServerError("no free ports for a scratch server", tip="ss -tln shows what listens")
