"""What runs a project elsewhere: manifests for Kubernetes and KServe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.targets.folder import render_manifests
    from marsmith.targets.workload import Workload

__all__ = ["Workload", "render_manifests"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Workload": "marsmith.targets.workload",
        "render_manifests": "marsmith.targets.folder",
    },
)
