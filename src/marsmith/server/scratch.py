"""Scratch servers for measurements: the project's server config, free ports, an empty model store; temporary.

A scratch server has the same protocol as the project's server, including tokens and TLS. It listens only on the
loopback, with its own certificate, because the project's certificate may not be valid there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from marsmith.server.front.ports import LOOPBACK, free_ports
from marsmith.server.preflight import busy_port

_APIS = ("inference", "management", "metrics")
# Keys that refer to the project's server or its files.
_NOT_TAKEN_OVER = ("model_snapshot", "initial_worker_port", "keystore", "keystore_pass", "keystore_type")
_TRIES = 3


@contextmanager
def scratch_server(project: Project, archives: Mapping[str, Path] | None = None) -> Iterator[Project]:
    """Run a server beside any running one, and stop it at the end, even if this process is killed.

    Args:
        project: project of the server config, except for addresses, certificate and model store.
        archives: archives to serve from the start, by file name in the store. More can be added and registered.

    Yields:
        The project of the scratch server, with its ``model_store``.

    Raises:
        ArchiveError: the project does not admit an archive. Archives that are added later are not checked.
        PreflightError: the server config cannot be used.
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
                # No one waits for answers any more.
                lifecycle.stop(scratch, timeout_s=0)


def scratch_config(scratch: Project, config: Mapping[str, str]) -> dict[str, str]:
    """Return the server config of a scratch server, on unused ports.

    Args:
        scratch: project of the scratch server.
        config: effective server config of the original project.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_TAKEN_OVER}
    return {
        **kept,
        **_free_addresses(config),
        **(_own_pair(scratch) if uses_tls(config) else {}),
        "model_store": str(scratch.model_store),
        "load_models": "all",
        "enable_model_api": "true",
        # The values of variables are included already; the variables would restore the project's ports.
        "enable_envvars_config": "false",
    }


def _start(scratch: Project, config: Mapping[str, str]) -> None:
    """Start the server; retry on other ports if another process took one."""
    for tries_left in reversed(range(_TRIES)):
        own = scratch_config(scratch, config)
        scratch.server_config.write_text(render_properties(own), encoding="ascii")
        try:
            lifecycle.start(scratch, lifecycle.StartOptions(outlives=False, strict=True, front="none"))
        except ServerError:
            # Our own processes have ended, so a port in use belongs to another process.
            if not tries_left or not any(map(busy_port, addresses(own).all())):
                raise
        else:
            return


def _own_pair(scratch: Project) -> dict[str, str]:
    key, certificate = write_pair(folder_of(scratch), make_pair(), force=True)
    return {"private_key_file": str(key), "certificate_file": str(certificate)}


def _free_addresses(config: Mapping[str, str]) -> dict[str, str]:
    """Return the keys that put every API on a free port of the loopback, with the same scheme."""
    where = addresses(config)
    ports = free_ports(len(_APIS) + 2)
    schemes = (where.inference.scheme, where.management.scheme, where.metrics.scheme)
    rest = {
        f"{api}_address": f"{scheme}://{LOOPBACK}:{ports.pop()}" for api, scheme in zip(_APIS, schemes, strict=True)
    }
    grpc = {f"grpc_{api}_port": str(ports.pop()) for api in ("inference", "management")}
    return {**rest, **grpc, "grpc_inference_address": LOOPBACK, "grpc_management_address": LOOPBACK}
