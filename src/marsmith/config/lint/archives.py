"""Rules for model archives, single ones and all in a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from marsmith.archive import Archive
from marsmith.archive.describe import EXPORT
from marsmith.archive.store import StoredArchive, archives_in, open_stored
from marsmith.config.lint.model_config import check_model_config
from marsmith.config.lint.rules import LintResult, violation
from marsmith.config.lint.server_file import ServerFile
from marsmith.config.lint.spec import check_names
from marsmith.config.server_config import store_folder
from marsmith.errors import MarsmithError
from marsmith.json_reader import read_json
from marsmith.project import Project

_STOCK_VISION = frozenset({"image_classifier", "image_segmenter", "object_detector", "dali_image_classifier"})
_STOCK_TOP = 5
_LABELS = "index_to_name.json"


def check_archive_file(path: Path, cores: int, root: Path, *, installs_requirements: bool = False) -> list[LintResult]:
    """Check one archive: its structure, names, handler and model config.

    Args:
        path: a .mar, a .tar.gz or a folder.
        cores: processor cores of the machine that serves.
        root: the project's root, with the spec of the archive if there is one.
        installs_requirements: whether the server config switches install_py_dep_per_model on.
    """
    try:
        archive = open_stored(path).archive
        return list(_opened(path, archive, cores, root, installs_requirements=installs_requirements))
    except MarsmithError as error:
        return [violation("MS501", path, 1, error.message, error.tip or "build it again")]


def check_store(file: ServerFile) -> list[LintResult]:
    """Check the archives that a server config loads: missing ones, and several of one version."""
    if "load_models" not in file.last or "model_store" not in file.last or "$$" in file.value("model_store"):
        return []
    store = store_folder(Project(file.root), file.entries, file.environment)
    if not store.is_dir():
        return []
    paths = archives_in(store, file.value("load_models"))
    missing = [path for path in paths if not path.exists()]
    line = file.line("load_models")
    results = [
        violation("MS127", file.path, line, f"load_models names {path.name}, which is not in {store}", "put it there")
        for path in missing
    ]
    return results + _twins(file, _readable(path for path in paths if path.exists()))


def _readable(paths: Iterable[Path]) -> list[StoredArchive]:
    return [stored for path in paths if (stored := _open_or_none(path))]


def _open_or_none(path: Path) -> StoredArchive | None:
    try:
        return open_stored(path)
    except MarsmithError:
        # The rules for the archive itself report it.
        return None


def _twins(file: ServerFile, archives: Iterable[StoredArchive]) -> list[LintResult]:
    versions: dict[tuple[str, str], list[str]] = {}
    for archive in archives:
        versions.setdefault(archive.version, []).append(archive.path.name)
    return [
        violation(
            "MS504",
            file.path,
            file.line("load_models"),
            f"{' and '.join(names)} in the store are both {name}:{version}",
            "give one of them another version, or take it out of the store",
        )
        for (name, version), names in versions.items()
        if len(names) > 1
    ]


def _opened(
    path: Path, archive: Archive, cores: int, root: Path, *, installs_requirements: bool
) -> Iterator[LintResult]:
    manifest = archive.manifest
    for text in manifest.noncanonical:
        yield violation("MS507", path, 1, text, "marsmith repack writes it as it should be")
    yield from check_names(path, manifest.model_name, manifest.model_version, 1, 1)
    if manifest.config_file:
        name = Path(manifest.config_file).name
        source = _source_of_config(archive, root)
        for item in check_model_config(path / name, archive.text(name) or "", cores):
            yield LintResult(replace(item.finding, fix=f"{item.finding.fix} in {source}, and build the archive again"))
    else:
        message = "the archive has no model config"
        fix = "write one with all seven keys that matter, as `marsmith archive` does"
        yield violation("MS502", path, 1, message, fix)
    if manifest.requirements_file and not installs_requirements:
        message = f"{manifest.requirements_file} is not installed by the server"
        yield violation("MS503", path, 1, message, "install what it names where the server runs, before it starts")
    if manifest.handler in _STOCK_VISION:
        yield from _stock(path, archive)


def _source_of_config(archive: Archive, root: Path) -> str:
    """Return the file to edit to change the model config of an archive."""
    spec = Path("config", "models", f"{archive.manifest.model_name}.yaml")
    if EXPORT in archive.members and (root / spec).is_file():
        return f"the block serving of {spec}"
    return f"the {Path(archive.manifest.config_file or '').name} that was packed"


def _stock(path: Path, archive: Archive) -> Iterator[LintResult]:
    handler = archive.manifest.handler
    message = f"the handler is TorchServe's own {handler}"
    yield violation("MS506", path, 1, message, "answer each request alone, as docs/how-to/handler.md shows")
    labels = _label_count(archive)
    if handler == "image_classifier" and labels is not None and labels < _STOCK_TOP:
        message = f"image_classifier returns the best five of {labels} classes, which fails"
        yield violation("MS505", path, 1, message, "use a handler of your own")


def _label_count(archive: Archive) -> int | None:
    text = archive.text(_LABELS)
    try:
        labels = read_json(text) if text else None
    except ValueError:
        return None
    return len(labels) if isinstance(labels, dict | list) else None
