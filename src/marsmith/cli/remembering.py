"""Save the state of the server after a verb that changes it, or report that it cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from marsmith.cli.output import note

if TYPE_CHECKING:
    from marsmith.project import Project
    from marsmith.state.served import ArchiveBytes, Version


def remember(project: Project, contents: Mapping[Version, ArchiveBytes] | None = None) -> None:
    """Save what the project's server serves; arguments as in ``server_state.record``."""
    from marsmith.file_errors import described
    from marsmith.server import state as server_state
    from marsmith.state.served_file import state_file

    def say_so(error: OSError) -> None:
        description = described(error, state_file(project))
        note(f"the change is made, but it survives a restart only if the supervisor can save it: {description.message}")
        if description.tip:
            note(f"TIP: {description.tip}")

    server_state.record(project, contents, refused=say_so)
