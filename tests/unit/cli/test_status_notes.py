"""What `marsmith status` says below its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsmith.cli.status import _notes
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server.status import ServerStatus
from marsmith.server.supervisor_state import SupervisorState

STATE = RunState(1, 2.0, "http://i", "http://m", "http://x", "g:1", "g:2", Path("run"), tokens=False)


@pytest.mark.parametrize(
    ("settings", "supervisor", "said"),
    [
        ("", SupervisorState(1, 2.0, listener="http://127.0.0.1:8083"), False),
        ("", SupervisorState(1, 2.0), True),
        ("", None, False),
        ("listener: none\n", SupervisorState(1, 2.0), False),
        ("listener: nowhere\n", SupervisorState(1, 2.0), False),
    ],
)
def test_a_listener_that_is_missing_is_said(
    settings: str, supervisor: SupervisorState | None, said: bool, project: Project
) -> None:
    project.settings_file.write_text(settings)
    lines = _notes(project, ServerStatus(STATE, (), supervisor=supervisor))
    missing = "no /metrics and no /ready: the supervisor does not listen at 127.0.0.1:8083, its log says why"
    assert lines == ([missing] if said else [])
