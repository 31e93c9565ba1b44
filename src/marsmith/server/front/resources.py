"""Files of resources, which Envoy watches: it reads a file again when another one takes its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from marsmith import files
from marsmith.server.front.scripts import Json


def source_of(path: Path) -> Json:
    """Return where Envoy gets resources: from a file, and anew each time it is replaced."""
    return {"path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}}}


def render_resources(resources: Iterable[Json]) -> tuple[str, str]:
    """Render the file of these resources. Return its text and its version, which Envoy shows when it has accepted it.

    The version is a digest of the content: equal content has an equal version.
    """
    listed = list(resources)
    version = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]
    return json.dumps({"version_info": version, "resources": listed}, indent=1) + "\n", version


def write_resources(path: Path, resources: Iterable[Json]) -> str:
    """Replace the file of these resources, readable only by the owner, and return its version.

    Raises:
        OSError: the file cannot be written; the old one is unchanged.
    """
    text, version = render_resources(resources)
    files.write_atomically(path, text, mode=0o600)
    return version
