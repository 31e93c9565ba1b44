"""What stands in for a default version that is left out, so that TorchServe makes no other version the default.

TorchServe makes the first version that it loads the default and cannot have none. So it is given a folder that claims
to be the version. Its worker, which TorchServe starts whatever is configured, answers 503 until it is taken away; after
that TorchServe itself answers 503.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.archive.manifest import FILE_NAME as MANIFEST_FILE
from marsmith.archive.manifest import Manifest, render_manifest
from marsmith.config.model_config import FILE_NAME as CONFIG_FILE
from marsmith.config.model_config import ModelConfig, render_model_config
from marsmith.state.served import Version

if TYPE_CHECKING:
    from marsmith.client.version_status import VersionStatus
    from marsmith.run_state import LeftOut

# The number of a placeholder that is not given the number of the version that it stands in for.
VERSION = "left-out"
# A folder is registered by its base name, under which no archive in the store may lie.
_PREFIX = "marsmith-left-out-"
_HANDLER_FILE = "left_out_handler.py"
_HANDLER = """\
def handle(data, context):
    for index in range(len(data or [])):
        context.set_response_status(503, "Service Unavailable", index)
    return [{message}] * len(data or [])
"""


def write_placeholder(parent: Path, version: Version) -> Path:
    """Write the folder that stands in for a version, below ``parent``, and return it.

    Raises:
        OSError: it cannot be written.
    """
    name, number = version
    # A name without a dot in a path with ".mar" in it ends TorchServe (ModelServer.getDefaultModelName).
    folder = parent / f"{_PREFIX}{name}.folder"
    manifest = Manifest(name, number, _HANDLER_FILE, config_file=CONFIG_FILE)
    answer = json.dumps({"code": 503, "type": "LeftOut", "message": f"{name}:{number} is left out of this server"})
    config = ModelConfig(minWorkers=1, maxWorkers=1, batchSize=1)
    (folder / MANIFEST_FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).write_text(render_manifest(manifest), encoding="ascii")
    (folder / CONFIG_FILE).write_text(render_model_config(config, {}), encoding="ascii")
    (folder / _HANDLER_FILE).write_text(_HANDLER.format(message=repr(answer)), encoding="utf-8")
    return folder


def is_placeholder(status: VersionStatus) -> bool:
    """Whether a registered version only stands in for one that is left out."""
    return status.archive_url.rpartition("/")[2].startswith(_PREFIX)


def stands_in(status: VersionStatus, left_out: Collection[str]) -> bool:
    """Whether a registered version only stands in for one that is left out: a placeholder, or itself without workers.

    Args:
        status: of the version.
        left_out: names of the files that the running server does not serve.
    """
    has_workers = bool(status.workers or status.min_workers)
    return is_placeholder(status) or (not has_workers and not left_out_names(status).isdisjoint(left_out))


def still_left_out(left_out: Iterable[LeftOut], registered: Iterable[VersionStatus]) -> tuple[LeftOut, ...]:
    """Return what is left out of a server for which this is registered: what has been fixed meanwhile is served."""
    answering = [status for status in registered if status.ready_workers and not is_placeholder(status)]
    served = {name for status in answering for name in left_out_names(status)}
    return tuple(each for each in left_out if each.file not in served)


def left_out_names(status: VersionStatus) -> set[str]:
    """Return what a version's archive may be called where it is left out: its file in the store, or its URL."""
    return {status.archive_url, status.archive_url.rpartition("/")[2]}
