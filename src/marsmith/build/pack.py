"""Pack loose files into a model archive, with the same members and manifest as torch-model-archiver, losing no data."""

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

# Built-in handlers of TorchServe by runtime; they are not members.
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
    """Arguments of ``marsmith pack``.

    Attributes:
        model_name, version: values for the manifest; the archive's file is named after the model.
        handler: path of a file, with or without ``.py`` and ``:function``, or the name of a built-in handler.
        serialized_file, model_file, requirements_file, config_file: files that become members with their base names.
        extra_files: see ``marsmith.build.extra_files.collect``.
        runtime: ``python``, ``python3`` or ``LSP``.
        export_path: folder of the archive; it is created if necessary.
        archive_format: see ``marsmith.archive.write.write_archive``.
        force: whether to replace an existing archive.
        keep_tree: whether to keep the paths of ``extra_files`` instead of a flat layout.
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
        """The archive to create."""
        return self.export_path / (self.model_name + SUFFIXES[self.archive_format])


@dataclass(frozen=True)
class Packed:
    """A finished archive: its path, and messages for the user."""

    path: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class HandlerChoice:
    """A handler on the command line: its file, None for a built-in one, and its function if given."""

    file: Path | None
    function: str | None


def pack(request: PackRequest, *, on_progress: Callable[[int, int], None] | None = None) -> Packed:
    """Build an archive from loose files.

    Raises:
        ConfigError: the model config has errors.
        UsageError: TorchServe refuses the name, or no request could name the version.
        HandlerError: the handler is not valid Python, or does not have exactly one entry point.
        BuildError: a file is missing, two different files have one name, the archive exists and ``force`` is not set,
            or the disk is full or refuses. The folder is unchanged.
        OtherBytesError: the archive would be in a model store, and its version is bound to another digest there.
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
    """Return the manifest, with the same fields as torch-model-archiver."""

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
    """Distinguish a built-in handler from a file, and split the file from the function.

    Raises:
        BuildError: the handler is neither.
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
    """Drop repeated members with the same name and content.

    Args:
        members: the files to pack.
        keep_tree: whether ``--keep-tree`` is given.

    Raises:
        BuildError: there are members with one name and different contents; the message lists the files.
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
    # Unreadable files are reported when the archive is planned.
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
    """Return the handler's imports from our handlers' shared package, which keeps its folder."""
    try:
        files, _ = follow_imports(handler)
    except HandlerError:
        return []
    folder = handler.parent
    return [Member(file.relative_to(folder).as_posix(), file) for file in library_files(files, folder)]


def _forgotten_imports(handler: Path, members: Sequence[Member]) -> list[str]:
    """Report files beside the handler that it imports and that the archive would lack.

    Torch-model-archiver does not.
    """
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
    """Create a folder, and remove it if nothing was put into it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(path))
        except OSError as error:
            description = described(error, path)
            tip = "name a folder that you can write to"
            raise BuildError(f"--export-path {path}: {description.message}", tip=tip) from None
        yield
