"""Loose files to a model archive, as torch-model-archiver does it: same members, same manifest, no data lost."""

from __future__ import annotations

import filecmp
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from marsmith.archive.manifest import Manifest
from marsmith.archive.members import Member
from marsmith.archive.write import SUFFIXES, ArchiveFormat, write_archive
from marsmith.build import extra_files
from marsmith.config.lint.model_config import require_sound
from marsmith.errors import BuildError, HandlerError, ProjectError
from marsmith.file_errors import described
from marsmith.files import made_folder
from marsmith.names import ModelVersion, check_model_name, check_model_version, did_you_mean
from marsmith.project import find_project
from marsmith.runtime.entry_points import require_entry_point
from marsmith.runtime.imports import check_former_imports, follow_imports, local_imports
from marsmith.runtime.library import library_files
from marsmith.state.version_bytes import guard

# Handlers that TorchServe brings itself, by runtime; they are no members.
BUILT_IN_HANDLERS = frozenset(
    {
        "base_handler",
        "text_classifier",
        "image_classifier",
        "object_detector",
        "image_segmenter",
        "dali_image_classifier",
        "vllm_handler",
        "trt_llm_handler",
    }
)
_BUILT_IN_LSP_HANDLERS = frozenset({"BaseHandler", "TorchScriptHandler"})


@dataclass(frozen=True)
class PackRequest:
    """What to pack.

    Attributes:
        model_name, version: for the manifest; the archive's file is named after the former.
        handler: path of a file, with or without ``.py`` and ``:function``; or the name of a built-in handler.
        serialized_file, model_file, requirements_file, config_file: become members of their base names.
        extra_files: see ``marsmith.build.extra_files.collect``.
        runtime: ``python``, ``python3`` or ``LSP``.
        export_path: the folder that the archive goes to; made if it is missing.
        archive_format: see ``marsmith.archive.write.write_archive``.
        force: replace an existing archive.
        keep_tree: keep the paths of ``extra_files`` instead of laying them flat.
    """

    model_name: str
    version: str
    handler: str
    serialized_file: Path | None = None
    model_file: Path | None = None
    extra_files: str = ""
    runtime: str = "python"
    export_path: Path = Path()
    archive_format: ArchiveFormat = "default"
    force: bool = False
    requirements_file: Path | None = None
    config_file: Path | None = None
    keep_tree: bool = False

    @property
    def target(self) -> Path:
        """The archive to be made."""
        return self.export_path / (self.model_name + SUFFIXES[self.archive_format])


@dataclass(frozen=True)
class Packed:
    """A finished archive: where it is, and what a person should know about how it was made."""

    path: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class HandlerChoice:
    """A handler as given on the command line: its file, None for a built-in one, and the function in it, if named."""

    file: Path | None
    function: str | None


def pack(request: PackRequest, *, on_progress: Callable[[int, int], None] | None = None) -> Packed:
    """Build an archive from loose files.

    Raises:
        ConfigError: the model config has errors.
        UsageError: TorchServe refuses the name, or nobody could name the version later.
        HandlerError: the handler is no valid Python, or has not exactly one entry point.
        BuildError: a missing file, two different files of one name, an existing archive without ``force``, a disk that
            is full or refuses. The folder is as it was.
        OtherBytesError: the archive would lie in a model store, and its version is bound to other bytes there.
    """
    check_model_name(request.model_name)
    check_model_version(request.version)
    if request.config_file is not None and request.config_file.is_file():
        require_sound(request.config_file.read_text(encoding="utf-8", errors="replace"), str(request.config_file))
    choice = handler_choice(request.handler, request.runtime)
    extra = extra_files.collect(request.extra_files, keep_tree=request.keep_tree, root=_project_root())
    named = [*_named_members(request, choice), *extra.members]
    notes = list(extra.notes)
    if choice.file is not None and choice.file.is_file() and request.runtime != "LSP":
        require_entry_point(choice.file, choice.function)
        named += _library_members(choice.file)
        sources = [one.source for one in named if isinstance(one.source, Path) and one.source.suffix == ".py"]
        check_former_imports(sources, {one.name.partition("/")[0].removesuffix(".py") for one in named})
        notes += _forgotten_imports(choice.file, named)
    members = without_duplicates(named, keep_tree=request.keep_tree)
    with _folder(request.export_path):
        write_archive(
            manifest_of(request),
            members,
            request.target,
            archive_format=request.archive_format,
            force=request.force,
            on_progress=on_progress,
            accept=guard(request.target, ModelVersion(request.model_name, request.version)),
            digest=False,
        )
    return Packed(request.target, tuple(notes))


def manifest_of(request: PackRequest) -> Manifest:
    """Return the manifest, with the fields that torch-model-archiver would write."""

    def base_name(path: Path | None) -> str | None:
        return path.name if path else None

    return Manifest(
        model_name=request.model_name,
        model_version=request.version,
        handler=request.handler.rpartition("/")[2],
        serialized_file=base_name(request.serialized_file),
        model_file=base_name(request.model_file),
        requirements_file=base_name(request.requirements_file),
        config_file=base_name(request.config_file),
        runtime=request.runtime,
    )


def handler_choice(handler: str, runtime: str) -> HandlerChoice:
    """Tell a built-in handler from a file, and the file from the function in it.

    Raises:
        BuildError: neither.
    """
    if handler in (_BUILT_IN_LSP_HANDLERS if runtime == "LSP" else BUILT_IN_HANDLERS):
        return HandlerChoice(None, None)
    suffix = ".py" if runtime != "LSP" else ".dylib" if sys.platform == "darwin" else ".so"
    if Path(handler).is_file() and handler.endswith(suffix):
        return HandlerChoice(Path(handler), None)
    path, colon, function = handler.rpartition(":")
    path, name = (path, function) if colon else (handler, None)
    file = Path(path if path.endswith(suffix) else path + suffix)
    if not file.exists():
        hint = did_you_mean(handler, BUILT_IN_HANDLERS)
        raise BuildError(f"--handler {handler}: {file} does not exist, nor a built-in handler of this name{hint}")
    return HandlerChoice(file, name)


def without_duplicates(members: Sequence[Member], *, keep_tree: bool) -> list[Member]:
    """Drop members that are there already, with the same name and content.

    Args:
        members: the files to pack.
        keep_tree: whether ``--keep-tree`` is given already.

    Raises:
        BuildError: for every pair of one name and different contents, with both files.
    """
    kept: dict[str, Member] = {}
    problems = []
    for member in members:
        other = kept.setdefault(member.name, member)
        if other is not member and not _same_content(other, member):
            problems.append(f"{other.source!s} and {member.source!s} differ, and both would become {member.name!r}")
    if problems:
        apart = "" if keep_tree else ", or keep the folders of --extra-files apart with --keep-tree"
        raise BuildError("\n".join(problems), tip=f"rename one of them{apart}")
    return list(kept.values())


def _same_content(one: Member, other: Member) -> bool:
    if isinstance(one.source, bytes) or isinstance(other.source, bytes):
        return one.sha256() == other.sha256()
    # Whatever is no readable file is named when the archive is planned.
    if not (one.source.is_file() and other.source.is_file()):
        return True
    return one.source.samefile(other.source) or filecmp.cmp(one.source, other.source, shallow=False)


def _named_members(request: PackRequest, choice: HandlerChoice) -> list[Member]:
    paths = (
        request.model_file,
        request.serialized_file,
        choice.file,
        request.requirements_file,
        request.config_file,
    )
    return [Member(path.name, path) for path in paths if path is not None]


def _library_members(handler: Path) -> list[Member]:
    """Return what the handler reaches of the package that our handlers share, which keeps its folder."""
    try:
        files, _ = follow_imports(handler)
    except HandlerError:
        return []
    folder = handler.parent
    return [Member(file.relative_to(folder).as_posix(), file) for file in library_files(files, folder)]


def _forgotten_imports(handler: Path, members: Sequence[Member]) -> list[str]:
    """Say which files beside the handler it imports and the archive would lack; torch-model-archiver says nothing."""
    try:
        needed = local_imports(handler)
    except HandlerError as error:
        return [error.message]
    present = {member.name for member in members}
    folder = handler.resolve().parent
    names = [path.resolve().relative_to(folder).as_posix() for path in needed]
    absent = sorted(name for name in names if name not in present)
    return [f"{handler.name} imports {name}, which lies beside it: {_how_to_add(name, folder)}" for name in absent]


def _how_to_add(name: str, folder: Path) -> str:
    if "/" not in name:
        return "add it to --extra-files"
    return f"add {folder} to --extra-files, as what lies in folders of a named folder keeps its place"


def _project_root() -> Path | None:
    with suppress(ProjectError):
        return find_project().root
    return None


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, and take it away again if nothing comes of what should go into it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(path))
        except OSError as error:
            told = described(error, path)
            tip = "name a folder that you can write to"
            raise BuildError(f"--export-path {path}: {told.message}", tip=tip) from None
        yield
