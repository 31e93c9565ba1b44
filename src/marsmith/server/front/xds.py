"""Parts of Envoy's configuration that several files need, and the files themselves.

A resource has the form of Envoy's API v3 as JSON. Envoy watches the folder and reads a file again when it is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from marsmith import files

Resource = Mapping[str, Any]

_TYPES = "type.googleapis.com/"


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    """Return a message with its type, such as ``envoy.config.cluster.v3.Cluster``."""
    return {"@type": f"{_TYPES}{kind}", **fields}


def extension(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    """Return the configuration of an extension, such as a filter."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def type_url(kind: str) -> str:
    """Return the URL of a type."""
    return f"{_TYPES}{kind}"


def watched(path: Path) -> dict[str, Any]:
    """Return the source of resources in a file that is replaced by rename."""
    return {
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
        "resource_api_version": "V3",
    }


def render_resources(resources: Iterable[Resource]) -> tuple[str, str]:
    """Render the file of these resources. Return its text and its version, which Envoy shows when it has accepted it.

    The version is a digest of the content: equal content has an equal version.
    """
    listed = list(resources)
    version = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]
    return json.dumps({"version_info": version, "resources": listed}, indent=1) + "\n", version


def write_resources(path: Path, resources: Iterable[Resource]) -> str:
    """Replace the file of these resources, readable only by the owner, and return its version.

    Raises:
        OSError: the file cannot be written; the old one is unchanged.
    """
    text, version = render_resources(resources)
    files.write_atomically(path, text, mode=0o600)
    return version
