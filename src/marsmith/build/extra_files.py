"""``--extra-files``: files, folders and wildcards as members, with the layout of torch-model-archiver."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from marsmith.archive.members import Member
from marsmith.errors import BuildError

_WILDCARDS = frozenset("*?[")
_LEFT_OUT = frozenset({"__MACOSX", "__pycache__"})


@dataclass
class ExtraFiles:
    """Result of ``--extra-files``.

    Attributes:
        members: the files; names may not be unique yet.
        notes: messages for the user, one sentence each.
    """

    members: list[Member] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(argument: str, *, keep_tree: bool = False, root: Path | None = None) -> ExtraFiles:
    """Convert a comma-separated list of files, folders and wildcards into members.

    A file becomes a member with its base name. The files of a folder are put at the top of the archive, and its
    subfolders keep their relative paths. Folders named ``__pycache__`` or ``__MACOSX`` and hidden ones are left out.

    Args:
        argument: text such as ``labels.json,assets/,vocab/*.txt``.
        keep_tree: whether all files and folders keep their paths; see ``_place_in_tree``.
        root: folder that links in folders must not leave; None: they may, with a note.

    Raises:
        BuildError: a path does not exist, or a link in a folder leads out of ``root`` or to a parent folder.
    """
    result = ExtraFiles()
    for text in filter(None, (part.strip() for part in argument.split(","))):
        for path in _matches(text, result.notes):
            if path.is_dir():
                top = f"{_place_in_tree(path, root)}/" if keep_tree else ""
                result.members += _in_folder(path, top, _Links(path.resolve(), root, result.notes), ())
            else:
                result.members.append(Member(_place_in_tree(path, root) if keep_tree else path.name, path))
    return result


def _place_in_tree(path: Path, root: Path | None) -> str:
    """Return a path relative to the working folder, else to the project's root, else its last name; never with ``..``.

    Links keep their own names.
    """
    # Not resolved, because that would follow links.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    for folder in (Path.cwd(), root):
        if folder is not None and absolute != folder and absolute.is_relative_to(folder):
            return absolute.relative_to(folder).as_posix()
    return absolute.name


def _matches(text: str, notes: list[str]) -> list[Path]:
    # A file with exactly this name comes first; torch-model-archiver would omit `labels[1].txt`.
    if Path(text).exists():
        return [Path(text)]
    if not _WILDCARDS & set(text):
        slashes = text.replace("\\", "/")
        tip = f"folders are separated by /: {slashes}" if slashes != text and Path(slashes).exists() else None
        raise BuildError(f"--extra-files: {text} does not exist", tip=tip)
    found = sorted(glob.glob(text))  # noqa: PTH207  # torch-model-archiver's own wildcards
    if not found:
        notes.append(f"--extra-files: {text} matches no file")
    return [Path(name) for name in found]


@dataclass(frozen=True)
class _Links:
    """Permitted targets of links in a folder."""

    folder: Path
    root: Path | None
    notes: list[str]

    def check(self, path: Path, above: tuple[Path, ...]) -> None:
        real = path.resolve()
        if real in above:
            raise BuildError(f"--extra-files: {path} is a link back up, to {real}", tip="remove the link")
        if path.is_symlink() and not real.is_relative_to(self.folder):
            if self.root is not None and not real.is_relative_to(self.root):
                raise BuildError(
                    f"--extra-files: {path} is a link out of the project, to {real}", tip="copy its target instead"
                )
            self.notes.append(f"--extra-files: {path} is a link; its target is packed: {real}")


def _in_folder(folder: Path, prefix: str, links: _Links, above: tuple[Path, ...]) -> Iterator[Member]:
    above = (*above, folder.resolve())
    for path in sorted(Path(entry.path) for entry in os.scandir(folder)):
        links.check(path, above)
        if not path.is_dir():
            yield Member(prefix + path.name, path)
        elif path.name not in _LEFT_OUT and not path.name.startswith("."):
            yield from _in_folder(path, f"{prefix}{path.name}/", links, above)
