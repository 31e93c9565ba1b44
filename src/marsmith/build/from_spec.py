"""Build the archive of a spec in the model store: export, handler, configuration and validated replies.

The archive is first laid out as a folder of links. Its handler answers the spec's examples there, in TorchServe's own
worker. Then the archive is written with these replies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.archive.environment import Environment, render_environment
from marsmith.archive.manifest import Manifest
from marsmith.archive.members import Member
from marsmith.archive.write import write_archive
from marsmith.build.assembly import ProvedExamples, environment_members, linked_folder, proved_examples
from marsmith.build.reference import reference_member, validation_files
from marsmith.config import model_config
from marsmith.config.lint.model_config import require_sound
from marsmith.config.model_spec import ModelSpec
from marsmith.config.server_config import model_store
from marsmith.errors import BuildError
from marsmith.export import stamp as build_stamp
from marsmith.export.folder import Export
from marsmith.export.model import export_model
from marsmith.file_errors import described
from marsmith.inputs import read_input
from marsmith.names import ModelVersion, archive_file_name
from marsmith.project import Project
from marsmith.runtime import environment
from marsmith.runtime.entry_points import require_entry_point
from marsmith.runtime.form_probe import check_takes_form
from marsmith.runtime.imports import local_imports
from marsmith.runtime.replay import ExampleRequest, usual_tolerance
from marsmith.runtime.runner import Runner
from marsmith.state.version_bytes import guard

_REPORT = "MAR-INF/export.json"


@dataclass(frozen=True)
class BuiltArchive:
    """A finished archive.

    Attributes:
        path: path of the archive.
        sha256: digest of the whole file.
        reused: whether it existed already, from the same inputs.
    """

    path: Path
    sha256: str
    reused: bool


def build_from_spec(
    project: Project,
    spec: ModelSpec,
    *,
    weights: str | None = None,
    allow_pickle: bool = False,
    strip_prefix: str | None = None,
    frozen: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BuiltArchive:
    """Build ``<name>-<version>.mar`` in the model store, unless it is still current.

    Args:
        project: the project.
        spec: spec to build; its version is that of the archive.
        weights: replaces the spec's ``export.weights``.
        allow_pickle: whether to load weights from a file that can run code.
        strip_prefix: replaces the spec's ``export.strip_prefix``.
        frozen: whether to refuse to measure a form without a lock.
        on_step: called with a description of each step.
        on_progress: called with the written and the total number of bytes.

    Raises:
        ExportError, BuildError, HandlerError: the archive cannot be built; the store is unchanged.
        OtherBytesError: the version is bound to another digest; the store is unchanged.
    """
    # Cheap checks come before the export.
    handler_files = _handler_files(project, spec)
    extra_files = [_inside(project, path, "handler.extra_files") for path in spec.handler.extra_files]
    validation = validation_files(spec.reference, project.root)
    environment.record(handler_files)
    export = export_model(
        project,
        spec,
        weights=weights,
        allow_pickle=allow_pickle,
        strip_prefix=strip_prefix,
        frozen=frozen,
        on_step=on_step,
    )
    record = environment.record(handler_files, engine=export.form.engine)
    members = _members(spec, export, handler_files, extra_files)
    target = model_store(project) / archive_file_name(spec.name, spec.version)
    stamp = project.root / ".marsmith" / "archives" / f"{target.name}.json"
    inputs = {
        **_inputs(spec, export, record),
        "archive": _shown(target, project),
        "reference": [_shown(path, project) for path in validation],
    }
    if build_stamp.is_current(stamp, inputs, project.root):
        digest = files.sha256(target)
        # An archive may be changed without a new size or time.
        if digest == build_stamp.recorded_digest(stamp, target, project.root):
            return BuiltArchive(target, digest, reused=True)
    sources = [member.source for member in members if isinstance(member.source, Path)]
    manifest = _manifest(spec, export, handler_files[0])
    tried = _without_log(spec, export, members)
    proved = _proved_examples(project, spec, export, manifest, tried, on_step)
    members = [*_reported(members, export, proved), *proved.members]
    if validation:
        members.append(reference_member(validation, manifest, tried, spec.serving.batch_size, on_step))
    members += environment_members(spec.name, spec.version, record, members)
    on_step(f"writing {_shown(target, project)}")
    _make_store(target.parent)
    accept = guard(target, ModelVersion(spec.name, spec.version))
    digest = write_archive(manifest, members, target, force=True, on_progress=on_progress, accept=accept)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    examples = [read_input(example.input, project.root).path for example in spec.examples]
    stamped = [*sources, *(path for path in examples if path), *validation, target]
    build_stamp.write_stamp(stamp, inputs, stamped, project.root)
    return BuiltArchive(target, digest, reused=False)


def _shown(path: Path, project: Project) -> str:
    """Return a path relative to the project's root."""
    return str(path.relative_to(project.root) if path.is_relative_to(project.root) else path)


def _make_store(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        description = described(error, store)
        raise BuildError(
            f"cannot make the model store: {description.message}",
            tip=f"model_store in config.properties names it; {description.tip}",
        ) from None


def _inputs(spec: ModelSpec, export: Export, record: Environment) -> dict[str, Any]:
    """Return the inputs of an archive besides files."""
    return {
        "spec": spec.model_dump(),
        "export": export.report,
        "environment": render_environment(record),
        "code": build_stamp.code_digest(),
    }


def _manifest(spec: ModelSpec, export: Export, handler: Path) -> Manifest:
    return Manifest(
        model_name=spec.name,
        model_version=spec.version,
        serialized_file=export.serialized_file.name,
        handler=handler.name,
        config_file=model_config.FILE_NAME,
        marsmith={"formatVersion": 1},
    )


def _handler_files(project: Project, spec: ModelSpec) -> list[Path]:
    """Return the handler and its local imports, the handler first."""
    entry = _inside(project, spec.handler.entry_point, "handler.entry_point")
    require_entry_point(entry)
    return [entry, *local_imports(entry)]


def _inside(project: Project, path: str, key: str) -> Path:
    """Return the file of a spec's key, after a check that it is a file in the project."""
    file = project.root / path
    if not file.resolve().is_relative_to(project.root):
        raise BuildError(f"{key}: {path} leads out of the project, to {file.resolve()}", tip="copy it into the project")
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "does not exist"
        raise BuildError(f"{key}: {file} {kind}", tip="name a file, relative to the project's root")
    return file


def _members(
    spec: ModelSpec, export: Export, handler_files: Sequence[Path], extra_files: Sequence[Path]
) -> list[Member]:
    config = model_config.render_model_config(spec.serving, handler_settings(spec, export))
    require_sound(config, f"{spec.name}: {model_config.FILE_NAME}")
    folder = handler_files[0].parent
    return [
        Member(_REPORT, export.report_file),
        Member(export.serialized_file.name, export.serialized_file),
        *(Member(path.name, path) for path in export.companions),
        Member(export.labels_file.name, export.labels_file),
        Member(model_config.FILE_NAME, config.encode()),
        *(Member(file.relative_to(folder).as_posix(), file) for file in handler_files),
        *(Member(file.name, file) for file in extra_files),
    ]


def _reported(members: Sequence[Member], export: Export, proved: ProvedExamples) -> list[Member]:
    """Return the members with an export.json that lists the examples that other machines cannot compare."""
    report = proved.report()
    if not report:
        return list(members)
    text = json.dumps({**export.report, **report}, indent=2) + "\n"
    return [Member(_REPORT, text.encode()) if member.name == _REPORT else member for member in members]


def handler_settings(spec: ModelSpec, export: Export) -> dict[str, Any]:
    """Return the block that the handler reads: what the recipe says about images, and over it the spec's settings."""
    return {
        **export.report["preprocessing"]["byTheHandler"],
        **export.handler_block(spec.export.engine_missing),
        "environment": spec.handler.environment,
        "labels": export.labels_file.name,
        **spec.handler.settings,
    }


def _proved_examples(
    project: Project,
    spec: ModelSpec,
    export: Export,
    manifest: Manifest,
    members: Sequence[Member],
    on_step: Callable[[str], None],
) -> ProvedExamples:
    """Send the spec's examples to the handler of the new archive.

    This also detects a handler that does not load or does not fit the export, even without examples.
    """
    on_step(f"loading the handler, answering {len(spec.examples)} examples")
    inputs = [read_input(example.input, project.root) for example in spec.examples]
    with linked_folder(manifest, members) as folder, Runner(folder, batch_size=spec.serving.batch_size) as runner:
        usual = usual_tolerance(runner, export.form.precision)
        requests = [
            ExampleRequest(given.name, given.body, given.content_type, example.tolerance or usual, example.expect)
            for given, example in zip(inputs, spec.examples, strict=True)
        ]
        if not requests:
            check_takes_form(runner, spec.handler.entry_point, export.report)
        return proved_examples(runner, requests, on_step)


def _without_log(spec: ModelSpec, export: Export, members: Sequence[Member]) -> list[Member]:
    """Return the members with a model config without a prediction log: a live server's must not get a build's lines."""
    settings = {key: value for key, value in handler_settings(spec, export).items() if key != "prediction_log"}
    config = Member(model_config.FILE_NAME, model_config.render_model_config(spec.serving, settings).encode())
    return [config if member.name == config.name else member for member in members]
