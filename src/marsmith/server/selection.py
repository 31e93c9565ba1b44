"""Select the archives of a model store to serve, so that a bad archive never stops the others.

``open_servable`` makes every check of a single archive before TorchServe may load it: for a start, a restart and a
registration. An archive that fails inside Java ends the whole server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from marsmith.archive.admit import ANY, Policy, admit
from marsmith.archive.store import LoadItem, StoredArchive, first_example, is_archive, open_stored
from marsmith.config.lint.model_config import require_sound
from marsmith.errors import ArchiveError, MarsmithError
from marsmith.names import check_model_name, check_model_version
from marsmith.run_state import LeftOut
from marsmith.state.served import Version

_UNFIT_NAMES = (
    (re.compile(r"[,\\]"), "TorchServe does not accept a file name with a comma or a backslash"),
    (re.compile(r"\.\."), "TorchServe refuses a file name with '..'"),
    (re.compile(r"(?i)^(https?|file|ftp|jar|mailto):"), "TorchServe takes its file name for a URL"),
)
# Modules that TorchServe's own handlers import and its wheel does not declare.
_STOCK_MODULES = {"captum": "captum", "torchvision": "torchvision", "PIL": "pillow"}


@dataclass(frozen=True)
class Selection:
    """The content of a model store, divided.

    Attributes:
        served: archives that a server may load, one for each version.
        left_out: all other files, with their reasons.
    """

    served: tuple[StoredArchive, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def select(
    items: Iterable[LoadItem],
    known_files: Iterable[str] = (),
    policy: Policy = ANY,
    check: Callable[[StoredArchive], None] = lambda _: None,
) -> Selection:
    """Divide the files that a server would load into those to serve and those to leave out.

    Args:
        items: files and URLs of the server config. URLs are not checked unless the policy requires it.
        known_files: names of archives that were served before; they take precedence over others of the same version.
        policy: the archives that the project admits.
        check: raises a MarsmithError for an archive that this project must not serve under its version.
    """
    served: list[StoredArchive] = []
    left_out: list[LeftOut] = []
    for item in items:
        found = _decide(item, item.path, policy, check) if item.path else _decide_url(item, policy)
        if isinstance(found, LeftOut):
            left_out.append(found)
        elif found:
            served.append(found)
    meant, twins = _without_twins(served, frozenset(known_files))
    return Selection(tuple(meant), in_order((*left_out, *twins)))


def in_order(left_out: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """Return what is left out, sorted by name."""
    return tuple(sorted(left_out, key=lambda each: each.file))


def open_servable(path: Path, alias: str | None = None, policy: Policy = ANY) -> StoredArchive:
    """Open an archive for TorchServe after all checks: it is admitted, it can be loaded, and its metadata is valid.

    Args:
        path: path of the archive.
        alias: model name to serve it under; None for its own name.
        policy: the archives that the project admits.

    Raises:
        MarsmithError: the archive cannot be served; the message says why.
        OSError: the archive cannot be read.
    """
    _check_file_name(path)
    stored = open_stored(path, alias)
    _check_kind(stored)
    # A version with an invalid name could not be unregistered.
    check_model_name(stored.version[0])
    check_model_version(stored.version[1])
    _check_model_config(stored)
    _check_stock_modules(stored)
    # An unreadable list of examples would stop the start.
    first_example(stored)
    # The last check, because it reads the whole archive.
    admitted = admit(stored.archive, policy)
    return replace(stored, warnings=admitted.warnings)


def _decide(
    item: LoadItem, path: Path, policy: Policy, check: Callable[[StoredArchive], None]
) -> StoredArchive | LeftOut:
    if item.from_listing and not is_archive(path):
        kind = "a folder that is not an archive" if path.is_dir() else "not an archive"
        return LeftOut(path.name, kind, "move it out of the model store", is_archive=False)
    try:
        stored = open_servable(path, item.alias, policy)
        check(stored)
    except MarsmithError as error:
        return LeftOut(path.name, _one_line(error.message, path), error.tip or f"marsmith lint {path}")
    except OSError as error:
        return LeftOut(path.name, error.strerror or str(error), f"let this user read {path}")
    return stored


def _decide_url(item: LoadItem, policy: Policy) -> LeftOut | None:
    """Leave out a URL if the policy requires more than the default: TorchServe downloads it without verification."""
    if policy == ANY:
        return None
    tip = "download it, check it with marsmith verify, and put it into the model store"
    return LeftOut(item.argument, "TorchServe itself downloads it, so it cannot be admitted", tip)


def _check_file_name(path: Path) -> None:
    """Refuse a file name that TorchServe misreads: it splits lists at commas, and treats some names as URLs."""
    reason = next((reason for pattern, reason in _UNFIT_NAMES if pattern.search(path.name)), None)
    if reason:
        raise ArchiveError(f"{path.name}: {reason}", tip="give the file another name")


def _check_kind(stored: StoredArchive) -> None:
    """Refuse a suffix that contradicts the content: TorchServe uses the suffix, and then loads nothing."""
    kind, name = stored.archive.kind, stored.path.name
    if kind != "folder" and (kind == "mar") != name.endswith(".mar"):
        raise ArchiveError(f"{name}: its content is a {kind}, but TorchServe uses its name", tip=f"call it .{kind}")


def _check_model_config(stored: StoredArchive) -> None:
    if stored.manifest.config_file:
        name = Path(stored.manifest.config_file).name
        require_sound(stored.archive.text(name) or "", f"{stored.path.name}/{name}")


def _check_stock_modules(stored: StoredArchive) -> None:
    """Refuse one of TorchServe's own handlers if a module that it imports is missing."""
    handler = stored.manifest.handler.partition(":")[0]
    if handler.endswith(".py"):
        return
    missing = sorted(package for module, package in _STOCK_MODULES.items() if find_spec(module) is None)
    if missing:
        raise ArchiveError(
            f"{stored.path.name}: TorchServe's handler {handler} needs {', '.join(missing)}",
            tip=f"pip install {' '.join(missing)}",
        )


def _without_twins(
    archives: Sequence[StoredArchive], known_files: frozenset[str]
) -> tuple[list[StoredArchive], list[LeftOut]]:
    """Keep one archive of each version: TorchServe would load an arbitrary one and ignore the others."""
    versions: dict[Version, list[StoredArchive]] = {}
    for archive in archives:
        versions.setdefault(archive.version, []).append(archive)
    kept, left_out = [], []
    for (name, version), twins in versions.items():
        known = [twin for twin in twins if twin.path.name in known_files]
        meant = twins if len(twins) == 1 else known if len(known) == 1 else []
        kept += meant
        names = " and ".join(twin.path.name for twin in twins)
        reason, tip = f"{names} are both {name}:{version}", "give one of them another version"
        left_out += [LeftOut(twin.path.name, reason, tip) for twin in twins if twin not in meant]
    return kept, left_out


def _one_line(message: str, path: Path) -> str:
    """Return a message without line breaks and without the archive's own name, which precedes it anyway."""
    lines = [line.removeprefix(f"{path}: ").removeprefix(f"{path.name}: ") for line in message.splitlines()]
    return "; ".join(line.removeprefix(f"{path.name}/") for line in lines)
