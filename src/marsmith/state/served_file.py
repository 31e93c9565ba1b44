"""File ``.marsmith/state/served.json``: read, write and lock."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from marsmith import files
from marsmith.errors import FormatError, PreflightError
from marsmith.project import Project
from marsmith.state.served import ServerState, parse_state, render_state
from marsmith.state_files import NewerFormatError

FILE_NAME = "served.json"


@dataclass(frozen=True)
class Remembered:
    """State of the previous server.

    Attributes:
        state: the state; None if there is none.
        note: message for the user; None for none.
    """

    state: ServerState | None
    note: str | None = None


def state_file(project: Project) -> Path:
    """Return the path of the state of a project's server; it outlives the server."""
    return project.root / ".marsmith" / "state" / FILE_NAME


def load(project: Project) -> Remembered:
    """Read the state of the previous server; a damaged file is moved aside.

    Raises:
        PreflightError: a newer marsmith wrote it.
    """
    path = state_file(project)
    try:
        return Remembered(parse_state(path.read_text(encoding="utf-8"), str(path)))
    except FileNotFoundError:
        return Remembered(None)
    except NewerFormatError as error:
        tip = f"{error.tip}, or serve the model store as it is: marsmith serve --fresh"
        raise PreflightError(error.message, tip=tip) from None
    except (FormatError, UnicodeDecodeError) as error:
        aside = _put_aside(path)
        why = error.message if isinstance(error, FormatError) else f"{path}: not UTF-8"
        return Remembered(None, f"{why}; it is kept as {aside.name}, and only the model store decides what is served")
    except OSError as error:
        return Remembered(None, f"cannot read {path}: {error.strerror}; only the model store decides what is served")


def read(project: Project) -> ServerState:
    """Return the saved state; None if it cannot be read. The file is not moved."""
    try:
        return parse_state(state_file(project).read_text(encoding="utf-8"))
    except (OSError, FormatError, UnicodeDecodeError):
        return ServerState()


def save(project: Project, state: ServerState) -> None:
    """Write the state atomically, and sync it to the disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    files.write_atomically(state_file(project), render_state(state))


def forget(project: Project) -> None:
    """Delete the state."""
    state_file(project).unlink(missing_ok=True)


def locked(project: Project) -> AbstractContextManager[None]:
    """Let one process at a time read, change and write the file.

    Raises:
        OSError: the lock file cannot be created.
    """
    return files.lock(state_file(project).with_name("lock"))


def _put_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.replace(aside)
    return aside
