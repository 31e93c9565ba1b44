"""Placeholders of default versions that are left out, so that TorchServe makes no other version the default.

TorchServe makes the first version that it loads the default, and always has a default. It gets a folder that claims to
be the version. The folder's worker, which TorchServe starts in any case, answers 503 until it is removed; after that
TorchServe itself answers 503.
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

# Number of a placeholder, if it does not have the number of the left-out version.
VERSION = "left-out"
# A folder is registered by its base name. No archive in the store may have the same name.
_PREFIX = "marsmith-left-out-"
_HANDLER_FILE = "left_out_handler.py"
_HANDLER = """\
def handle(data, context):
    for index in range(len(data or [])):
        context.set_response_status(503, "Service Unavailable", index)
    return [{message}] * len(data or [])
"""


def write_placeholder(parent: Path, version: Version) -> Path:
    """Write the folder of a placeholder below ``parent``, and return it.

    Raises:
        OSError: the folder cannot be written.
    """
    name, number = version
    # A name without a dot in a path with ".mar" ends TorchServe (ModelServer.getDefaultModelName).
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
    """Return whether a registered version is a placeholder."""
    return status.archive_url.rpartition("/")[2].startswith(_PREFIX)


def stands_in(status: VersionStatus, left_out: Collection[str]) -> bool:
    """Return whether a registered version is left out: it is a placeholder, or it has no workers.

    Args:
        status: status of the version.
        left_out: names of the files that the running server does not serve.
    """
    has_workers = bool(status.workers or status.min_workers)
    return is_placeholder(status) or (not has_workers and not left_out_names(status).isdisjoint(left_out))


def still_left_out(left_out: Iterable[LeftOut], registered: Iterable[VersionStatus]) -> tuple[LeftOut, ...]:
    """Return the files that are still left out, given the registered versions: fixed ones are served meanwhile."""
    answering = [status for status in registered if status.ready_workers and not is_placeholder(status)]
    served = {name for status in answering for name in left_out_names(status)}
    return tuple(each for each in left_out if each.file not in served)


def left_out_names(status: VersionStatus) -> set[str]:
    """Return the possible names of a left-out version's archive: its file in the store, or its URL."""
    return {status.archive_url, status.archive_url.rpartition("/")[2]}
