"""Rebuild an archive of the stock tool as a faster one that gives the same answers.

The stock ``image_classifier`` is fully known, so our handler replaces it, and every form and engine is possible.
Another handler is kept, and its module is rebuilt with the same input and output tensors. In both cases the old and the
new archive get the same requests at the end, and must agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.archive import Manifest, Member, write_archive
from marsmith.build.assembly import ProvedExamples, environment_members, linked_folder, proved_examples
from marsmith.build.optimize.custom import custom_module
from marsmith.build.optimize.photos import EXAMPLES, REQUESTS, choose_photos
from marsmith.build.optimize.replies import Agreement, answers_of, ask, compare_replies
from marsmith.build.optimize.source import OldArchive, new_config, opened
from marsmith.build.optimize.stock import stock_module
from marsmith.build.optimize.task import NewModule, OptimizeOptions, Task
from marsmith.child_processes import inductor_folder, temporary_folder
from marsmith.config import admission_policy, model_config
from marsmith.config.form import Form
from marsmith.errors import BuildError, ExportError, UsageError
from marsmith.export.lock import ExportLock
from marsmith.export.machine import Machine
from marsmith.export.measure import SILENT, USUAL_EFFORT, Effort, Progress
from marsmith.inputs import read_input
from marsmith.names import ModelVersion, archive_file_name
from marsmith.project import Project
from marsmith.runtime.replay import ExampleRequest, usual_tolerance
from marsmith.runtime.runner import Request, Runner, RunnerReply
from marsmith.state.version_bytes import guard

VERSION_SUFFIX = "-optimized"


@dataclass(frozen=True)
class Optimized:
    """A finished archive.

    Attributes:
        path: path of the archive.
        sha256: digest of the whole file.
        form: the chosen form.
        report: content of export.json.
        lock: the measurements; None if there were none.
        agreement: comparison of its replies with the old ones.
        notes: messages for the user, one sentence each.
    """

    path: Path
    sha256: str
    form: Form
    report: Mapping[str, Any]
    lock: ExportLock | None
    agreement: Agreement
    notes: tuple[str, ...]


def optimize(
    project: Project, old: Path, options: OptimizeOptions, *, effort: Effort = USUAL_EFFORT, progress: Progress = SILENT
) -> Optimized:
    """Make a faster archive from one of torch-model-archiver with a TorchScript image classifier.

    Args:
        project: project with the handlers that replace the stock one.
        old: a ``.mar``, a ``.tar.gz`` or a folder; it is not changed.
        options: the options.
        effort: duration of the timing.
        progress: callbacks for the progress.

    Raises:
        ArchiveError: ``old`` is damaged or hostile, or cannot be optimized.
        ExportError: its module is not an image classifier, no form passes the gate, or the replies differ.
        HandlerError: its handler does not load, so there is nothing to compare with.
        UsageError: there are no images, or the form is not supported.
        OtherBytesError: the output is in a model store, and its version is bound to another digest there.
        BuildError: the output exists and ``force`` is not set, or cannot be written; no partial file is left.
    """
    archive, folder = opened(old, admission_policy(project)), temporary_folder("marsmith-")
    with archive as source, folder as place, inductor_folder(place / "inductor"):
        version = options.version or source.manifest.model_version + VERSION_SUFFIX
        target = options.output or old.resolve().parent / archive_file_name(source.manifest.model_name, version)
        _check_target(target, old, options)
        config = new_config(source.config, stock=source.is_stock, cores=Machine.here().cores)
        (place / "photos").mkdir()
        photos = choose_photos(options.examples, source.examples(), place / "photos")
        progress.step(f"measuring with {photos.source}")
        task = Task(project, source, config, photos, options, version, place, effort, progress)
        module = _module(task)
        return _assembled(task, module, target, files.sha256(old) if old.is_file() else None)


def _module(task: Task) -> NewModule:
    return stock_module(task) if task.old.is_stock else custom_module(task)


def _check_target(target: Path, old: Path, options: OptimizeOptions) -> None:
    if target.resolve() == old.resolve():
        raise UsageError("the new archive would replace the old one", tip="--output FILE takes another name")
    if target.exists() and not options.force:
        raise BuildError(f"{target} already exists", tip="--force replaces it, --output FILE takes another name")
    if not target.parent.is_dir():
        raise BuildError(f"{target.parent}: no such folder", tip=f"mkdir -p {target.parent}")


def _assembled(task: Task, module: NewModule, target: Path, old_digest: str | None) -> Optimized:
    """Compare the new archive's replies with the old ones, then write it."""
    manifest = _manifest(task, module)
    members = [
        *(Member(name, path) for name, path in task.old.kept().items()),
        *module.members,
        Member(model_config.FILE_NAME, task.config.render(module.settings)),
    ]
    _refuse_doubles(members)
    proved, agreement = _proved(task, manifest, members, module.form.precision)
    report = {
        **module.report,
        "optimizedFrom": _origin(task.old, old_digest),
        "measuredWith": task.photos.source,
        "repliesComparedWithOld": agreement.record(),
        **proved.report(),
    }
    members += [Member("MAR-INF/export.json", _json(report)), *proved.members]
    members += environment_members(task.name, task.version, module.environment, members)
    task.progress.step(f"writing {target}")
    accept = guard(target, ModelVersion(task.name, task.version))
    digest = write_archive(manifest, members, target, force=task.options.force, accept=accept)
    return Optimized(target, digest, module.form, report, module.lock, agreement, _notes(task))


def _manifest(task: Task, module: NewModule) -> Manifest:
    return replace(
        task.old.manifest,
        model_version=task.version,
        serialized_file=module.serialized_file,
        handler=module.handler,
        config_file=model_config.FILE_NAME,
        marsmith={"formatVersion": 1},
        created_on=None,
        archiver_version=None,
    )


def _refuse_doubles(members: list[Member]) -> None:
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BuildError(
            f"the old archive has an extra file {twice!r}, which is the name of one of ours",
            tip="rename it in the old archive, or build from a spec",
        )


def _proved(task: Task, manifest: Manifest, members: list[Member], precision: str) -> tuple[ProvedExamples, Agreement]:
    """Send the same requests to both archives; return the examples with their replies, and the agreement."""
    photos = task.photos.all[:REQUESTS]
    inputs = [read_input(str(path), task.scratch) for path in photos]
    requests = [Request(given.body, given.content_type) for given in inputs]
    task.progress.step(f"sending {len(requests)} photos to the old and the new archive")
    before = answers_of(task.old.folder, requests)
    _require_answers(before, [given.name for given in inputs])
    with linked_folder(manifest, members) as folder, Runner(folder, batch_size=1) as runner:
        tolerance = usual_tolerance(runner, precision)
        shown = [ExampleRequest(given.name, given.body, given.content_type, tolerance) for given in inputs[:EXAMPLES]]
        after = ask(runner, requests)
        agreement = compare_replies([given.name for given in inputs], before, after, tolerance)
        return proved_examples(runner, shown, task.progress.step), agreement


def _require_answers(replies: list[RunnerReply], names: list[str]) -> None:
    """Refuse to compare with an archive that answers no request."""
    if all(reply.status >= 400 for reply in replies):
        body = replies[0].body[:300].decode("utf-8", "replace")
        raise ExportError(
            f"the old archive answers none of the photos; for {names[0]} status {replies[0].status}: {body}",
            tip="give images that it can answer: --examples DIR",
        )


def _origin(old: OldArchive, digest: str | None) -> dict[str, Any]:
    manifest = old.manifest
    found = {
        "archive": old.archive.path.name,
        "sha256": digest,
        "modelVersion": manifest.model_version,
        "handler": manifest.handler,
        "serializedFile": manifest.serialized_file,
        "serializedFileSha256": files.sha256(old.serialized_file),
    }
    return {key: value for key, value in found.items() if value is not None}


def _notes(task: Task) -> tuple[str, ...]:
    dropped = [
        f"the model config's key {key!r} is dropped: only the stock handler read it" for key in task.config.dropped
    ]
    workers = task.config.serving.min_workers
    if not task.old.is_stock and "minWorkers" not in task.old.config:
        dropped.append(f"the old archive has no number of workers; the new one has {workers}, one a core here")
    return tuple(dropped)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
