"""A server of its own for measuring: the project's server config, free ports, an empty model store, gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from marsmith import server
from marsmith.formats.properties import render_properties
from marsmith.server_config import effective_config, read_server_config
from marsmith.settings import Project

_REST = ("inference_address", "management_address", "metrics_address")
_GRPC = ("grpc_inference_port", "grpc_management_port")


@contextmanager
def scratch_server(project: Project, archives: Mapping[str, Path] | None = None) -> Iterator[Project]:
    """Run a server beside any that runs already, and stop it at the end.

    Args:
        project: whose server config is used, but for addresses and the model store.
        archives: file name in the store -> archive that is served from the start; more can be put there and registered.

    Yields:
        The project of the scratch server: its ``model_store`` is where archives go.
    """
    with tempfile.TemporaryDirectory(prefix="marsmith-") as folder:
        scratch = Project(Path(folder).resolve())
        scratch.specs.mkdir(parents=True)
        scratch.model_store.mkdir()
        for name, path in (archives or {}).items():
            shutil.copy(path, scratch.model_store / name)
        config = effective_config(project, read_server_config(project), os.environ) | _free_addresses()
        config |= {"model_store": str(scratch.model_store), "load_models": "all", "enable_model_api": "true"}
        config.pop("model_snapshot", None)
        scratch.server_config.write_text(render_properties(config), encoding="ascii")
        server.start(scratch)
        try:
            yield scratch
        finally:
            # Nobody waits for an answer any more.
            server.stop(scratch, timeout_s=0)


def _free_addresses() -> dict[str, str]:
    """Return the keys that put every API on a port of 127.0.0.1 that nothing uses now."""
    with ExitStack() as held:
        ports = []
        for _ in (*_REST, *_GRPC):
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    rest = {key: f"http://127.0.0.1:{port}" for key, port in zip(_REST, ports[:3], strict=True)}
    return rest | {key: str(port) for key, port in zip(_GRPC, ports[3:], strict=True)}
