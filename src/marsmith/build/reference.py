"""The reference of an archive: its handler answers the spec's validation data, and its log is sketched.

So validation data are described by the same code as live requests later.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from marsmith.archive.manifest import Manifest
from marsmith.archive.members import Member
from marsmith.archive.reference import FILE_NAME, Reference, render_reference
from marsmith.build.assembly import linked_folder
from marsmith.child_processes import temporary_folder
from marsmith.errors import BuildError
from marsmith.inputs import Input, read_input
from marsmith.predictions import LogFollower, Prediction
from marsmith.predictions.observations import STATUS, observation_of
from marsmith.runtime.runner import Request, Runner
from marsmith.runtime.worker import Process, start_python
from marsmith.statistics import Value, sketch_of

# Fewer inputs than this say little about a distribution.
FEW = 200
# The log's thread writes a line soon after the reply.
_LINE_S = 10.0
_LOOK_S = 0.01


def reference_member(
    validation: Sequence[Path],
    manifest: Manifest,
    members: Sequence[Member],
    batch_size: int,
    on_step: Callable[[str], None],
) -> Member:
    """Return ``MAR-INF/reference.json`` of an archive.

    Args:
        validation: files of validation data; at least one.
        manifest: manifest of the archive.
        members: its members, with a model config that sets no prediction log.
        batch_size: inputs in a batch.
        on_step: called with a description of each step.

    Raises:
        UsageError: a file cannot be read.
        BuildError: an input is refused, or the handler writes no prediction log.
        HandlerError: the handler does not load.
    """
    inputs = [read_input(str(path), path.parent) for path in validation]
    few = f"; fewer than {FEW} say little" if len(inputs) < FEW else ""
    on_step(f"answering {len(inputs)} inputs for the reference{few}")
    digest = hashlib.sha256("".join(hashlib.sha256(one.body).hexdigest() for one in inputs).encode()).hexdigest()
    values: dict[str, list[Value]] = {}
    for prediction in _logged(inputs, manifest, members, batch_size):
        for name, value in observation_of(prediction).values.items():
            values.setdefault(name, []).append(value)
    # All were answered.
    del values[STATUS]
    statistics = {name: sketch_of(found) for name, found in values.items()}
    return Member(FILE_NAME, render_reference(Reference(len(inputs), digest, statistics)).encode())


def validation_files(references: Sequence[str], root: Path) -> list[Path]:
    """Return the files of validation data, those of a folder sorted.

    Args:
        references: files and folders, and ``package:NAME/PATH``.
        root: folder of relative paths.

    Raises:
        UsageError: a file or package does not exist.
        BuildError: a folder is empty.
    """
    files: list[Path] = []
    for reference in references:
        folder = root / reference
        if folder.is_dir():
            found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
            if not found:
                raise BuildError(f"reference: {reference} has no file", tip="name files, or folders with files")
            files += found
        else:
            files += [path for path in (read_input(reference, root).path,) if path]
    return files


def _logged(
    inputs: Sequence[Input], manifest: Manifest, members: Sequence[Member], batch_size: int
) -> Iterator[Prediction]:
    """Yield what the handler logs of each input, batch by batch."""
    with temporary_folder("marsmith-") as logs, linked_folder(manifest, members) as folder:

        def launch(command: Sequence[str], place: Path, environment: Mapping[str, str]) -> Process:
            return start_python(command, place, {**environment, "LOG_LOCATION": str(logs)})

        log = LogFollower(logs / "predictions" / f"{manifest.model_name}.jsonl")
        with Runner(folder, batch_size=batch_size, launch=launch) as runner:
            for start in range(0, len(inputs), batch_size):
                batch = inputs[start : start + batch_size]
                yield from _answered(runner, log, batch, start)


def _answered(runner: Runner, log: LogFollower, batch: Sequence[Input], start: int) -> list[Prediction]:
    marks = [{"x-marsmith-log": "1", "x-request-id": str(start + number)} for number in range(len(batch))]
    replies = runner.run(
        [Request(one.body, one.content_type, headers) for one, headers in zip(batch, marks, strict=True)]
    )
    for one, reply in zip(batch, replies, strict=True):
        if reply.status >= 400:
            text = reply.body.decode("utf-8", "replace")[:300]
            raise BuildError(f"reference: {one.name} gets {reply.status}: {text}", tip="take the input out")
    found: list[Prediction] = []
    late = time.monotonic() + _LINE_S
    while len(found) < len(batch):
        found += log.read()
        if time.monotonic() > late:
            raise BuildError(
                "reference: the handler writes no prediction log",
                tip="build it on marsmith_handler.BaseHandler, or take reference out of the spec",
            )
        if len(found) < len(batch):
            time.sleep(_LOOK_S)
    return found
