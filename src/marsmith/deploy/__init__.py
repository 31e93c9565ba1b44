"""Deployment of versions: bring a version into service, or restore the state before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.deploy.traffic.canary import Canary
    from marsmith.deploy.traffic.shadow import Shadow
    from marsmith.deploy.versions import Outcome, deploy, plan_deploy, rollback

__all__ = ["Canary", "Outcome", "Shadow", "deploy", "plan_deploy", "rollback"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Canary": "marsmith.deploy.traffic.canary",
        "Outcome": "marsmith.deploy.versions",
        "Shadow": "marsmith.deploy.traffic.shadow",
        "deploy": "marsmith.deploy.versions",
        "plan_deploy": "marsmith.deploy.versions",
        "rollback": "marsmith.deploy.versions",
    },
)
