"""Where the prediction log of a model lies, and the archive whose handler compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from marsmith.archive.unpacked import unpacked
from marsmith.names import archive_file_name
from marsmith.predictions.comparison import Compare
from marsmith.predictions.hook import has_hook, hook
from marsmith.project import Project


def log_file(project: Project, model: str) -> Path:
    """Return the log that single requests are written to; an archive's settings may name another."""
    return project.prediction_logs / f"{model}.jsonl"


@contextmanager
def own_comparison(store: Path, model: str, version: str, admit: Callable[[Path], object]) -> Iterator[Compare | None]:
    """Yield the ``compare`` of a version's handler, in a child process; None if it has none, or has no archive.

    Args:
        store: folder of the archives.
        model: name of the model.
        version: whose handler compares.
        admit: raises if the project does not admit an archive; called before any code of it runs.

    Raises:
        ArchiveError: the archive cannot be opened, or is not admitted.
        HandlerError: the handler's module cannot be imported.
    """
    archive = store / archive_file_name(model, version)
    if not archive.is_file():
        yield None
        return
    admit(archive)
    with unpacked(archive) as members:
        if not has_hook(members):
            yield None
            return
        with hook(members) as compare:
            yield compare
