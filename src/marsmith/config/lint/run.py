"""Run the rules: select the files, and the rules for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from marsmith import strict_yaml
from marsmith.archive.store import SUFFIXES
from marsmith.config import edit as edits
from marsmith.config.lint.archives import check_archive_file, check_store
from marsmith.config.lint.metrics import WrittenMetric, check_metrics, written_metrics
from marsmith.config.lint.model_config import KINDS, check_model_config
from marsmith.config.lint.rules import LintResult
from marsmith.config.lint.server import check_server_config
from marsmith.config.lint.server_file import ServerFile
from marsmith.config.lint.settings import check_settings
from marsmith.config.lint.spec import check_spec
from marsmith.config.properties import ENCODING, as_mapping, parse_properties
from marsmith.config.server_config import model_store
from marsmith.config.server_keys import number
from marsmith.errors import ConfigError, FormatError, MarsmithError, UsageError
from marsmith.machine import usable_cores
from marsmith.project import Project

FileKind = Literal["server", "model", "spec", "metrics", "archive", "settings"]

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Context:
    """Facts for the rules besides the file.

    Attributes:
        root: the project's root.
        cores: processor cores of the machine that serves.
        queue_size: job_queue_size of the project's server config.
        installs_requirements: whether the server config switches install_py_dep_per_model on.
        written: metrics that the project's handlers write.
    """

    root: Path
    cores: int
    queue_size: int = 100
    installs_requirements: bool = False
    written: tuple[WrittenMetric, ...] = ()


def lint_project(project: Project, *, cores: int | None = None) -> list[LintResult]:
    """Check every file of a project that a server or a build reads."""
    return _lint(_project_files(project), context_of(project.root, cores))


def lint_paths(paths: Iterable[Path], root: Path, *, cores: int | None = None) -> list[LintResult]:
    """Check files, archives and folders; in a folder, every file of a known kind.

    Args:
        paths: files and folders.
        root: the project's root; paths in specs are relative to it.
        cores: processor cores of the machine that serves; by default those of this machine.

    Raises:
        UsageError: a path does not exist, or there are no rules for it.
    """
    files = [file for path in paths for file in _expanded(path)]
    return _lint(files, context_of(root, cores))


def fix(results: Iterable[LintResult]) -> int:
    """Apply the edits, at most one per line, and return their number. Lint again to see the remaining findings.

    Raises:
        OSError: a file cannot be written.
    """
    chosen: dict[tuple[Path, int], tuple[Path, edits.Edit]] = {}
    added = []
    for item in results:
        if item.edit is None:
            continue
        if item.edit.line == 0 and item.finding.file.suffix == ".properties":
            added.append((item.finding.file, item.edit))
        else:
            chosen.setdefault((item.finding.file, _place(item)), (item.finding.file, item.edit))
    todo = [*chosen.values(), *added]
    for file, changes in edits.grouped(todo).items():
        edits.apply(file, changes)
    return len(todo)


def context_of(root: Path, cores: int | None = None) -> Context:
    """Gather the facts of a project; missing or invalid ones have TorchServe's defaults."""
    values = _server_values(root)
    handlers = sorted((root / "handlers").rglob("*.py"))
    written = tuple(metric for file in handlers for metric in written_metrics(file, _text(file)))
    return Context(
        root=root,
        cores=cores or usable_cores(),
        queue_size=number(values.get("job_queue_size", "100")) or 100,
        installs_requirements=values.get("install_py_dep_per_model", "false").lower() == "true",
        written=written,
    )


def kind_of(path: Path) -> FileKind | None:
    """Return the kind of rules for a file or folder; None if there are none."""
    if path.name.endswith(SUFFIXES) or (path / "MAR-INF").is_dir():
        return "archive"
    if path.suffix == ".properties":
        return "server"
    return _yaml_kind(path) if path.suffix in _YAML else None


def _lint(files: Iterable[Path], context: Context) -> list[LintResult]:
    return [item for file in dict.fromkeys(files) for item in _check(file, context)]


def _check(path: Path, context: Context) -> list[LintResult]:
    kind = kind_of(path)
    if kind == "archive":
        installs = context.installs_requirements
        return check_archive_file(path, context.cores, context.root, installs_requirements=installs)
    if kind == "server":
        return _check_server(path)
    text = _text(path)
    if kind == "spec":
        return check_spec(path, text, context.root, context.cores, context.queue_size)
    if kind == "settings":
        return check_settings(path, text, context.root)
    if kind == "metrics":
        return check_metrics(path, text, context.written)
    return check_model_config(path, text, context.cores)


def _check_server(path: Path) -> list[LintResult]:
    text = path.read_bytes().decode(ENCODING)
    results = check_server_config(path, text)
    if any(item.finding.rule == "MS108" for item in results):
        return results
    entries = tuple(parse_properties(text, str(path)))
    return [*results, *check_store(ServerFile(path, path.resolve().parent, entries, os.environ))]


def _server_values(root: Path) -> dict[str, str]:
    try:
        return as_mapping(parse_properties((root / "config.properties").read_text(encoding=ENCODING)))
    except (OSError, ConfigError):
        return {}


def _project_files(project: Project) -> Iterator[Path]:
    if project.server_config.exists():
        yield project.server_config
    yield from sorted((project.root / "config").glob("*.yaml"))
    yield from sorted(project.specs.glob("*.yaml"))
    with suppress(MarsmithError, OSError):
        yield from (path for path in sorted(model_store(project).iterdir()) if kind_of(path) == "archive")


def _expanded(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if kind_of(path):
        yield path
    elif path.is_dir():
        if (path / "config" / "models").is_dir():
            yield from _project_files(Project(path))
        else:
            yield from (
                child for child in sorted(path.iterdir()) if not child.name.startswith(".") and _is_known(child)
            )
    else:
        raise UsageError(
            f"no rules for {path}",
            tip="give config.properties, config/marsmith.yaml, a model config, a spec, metrics.yaml or an archive",
        )


def _is_known(path: Path) -> bool:
    return kind_of(path) is not None


def _yaml_kind(path: Path) -> FileKind | None:
    if path.name == "model-config.yaml":
        return "model"
    if path.name == "marsmith.yaml" and path.parent.name == "config":
        return "settings"
    if path.parent.name == "models" and path.parent.parent.name == "config":
        return "spec"
    if path.name == "metrics.yaml":
        return "metrics"
    try:
        keys = set(strict_yaml.load_mapping(_text(path), str(path), FormatError))
    except FormatError:
        return None
    if keys & {"ts_metrics", "model_metrics"}:
        return "metrics"
    if {"export", "handler"} <= keys or "serving" in keys:
        return "spec"
    return "model" if keys & KINDS.keys() else None


def _place(item: LintResult) -> int:
    """Return the place that only one edit at a time may change: a line, or a separate place for a new key."""
    assert item.edit is not None  # noqa: S101, only called if there is one
    return item.edit.line or hash(item.edit.path)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
