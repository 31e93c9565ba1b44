"""Proof of an archive at load: its digests, and the environment in which it was validated."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from marsmith_handler.archive_additions import harmful_additions

MANIFEST = "MAR-INF/MANIFEST.json"
SUMS = "MAR-INF/SHA256SUMS"
ENVIRONMENT = "MAR-INF/environment.txt"
CHUNK_BYTES = 1024 * 1024
logger = logging.getLogger(__name__)


def prove_digests(folder: Path, *, read: Collection[str] = (), may_have_more: bool = False) -> bool:
    """Refuse an unpacked archive that differs from what was built; see ``digest_problems``.

    Returns:
        Whether there were digests: an archive of another tool has none.

    Raises:
        RuntimeError: with every file that is missing, added or changed.
    """
    problems = digest_problems(folder, read=read, may_have_more=may_have_more)
    if problems:
        raise RuntimeError("the archive is not what was built: " + "; ".join(problems))
    if problems is None:
        logger.info("the archive has no %s: its digests are not verified", SUMS)
    return problems is not None


def prove_environment(folder: Path, policy: str, may_lack: Collection[str] = ()) -> None:
    """Compare the environment with the recorded one, and do what the policy says: ``strict``, ``warn`` or ``off``.

    Args:
        folder: the unpacked archive.
        policy: action for a difference.
        may_lack: packages that need not be installed; another version of them is still a difference.

    Raises:
        RuntimeError: with every difference, if the policy is ``strict``.
    """
    differences = environment_problems(folder, may_lack) if policy != "off" else None
    if differences and policy == "strict":
        raise RuntimeError("the environment is not the validated one: " + "; ".join(differences))
    for difference in differences or []:
        logger.warning("the environment is not the validated one: %s", difference)


def digest_problems(folder: Path, *, read: Collection[str] = (), may_have_more: bool = False) -> list[str] | None:
    """Compare the files of an unpacked archive with its SHA256SUMS.

    Other files count only if they could run or be loaded instead of a member, because handlers may write into the
    folder.

    Args:
        folder: where TorchServe has unpacked the archive.
        read: names that the handler reads if they are there.
        may_have_more: TorchServe has installed the archive's requirements into the folder.

    Returns:
        One sentence for each problem; empty if there is none; None for an archive of another tool without SHA256SUMS.
    """
    sums = folder / SUMS
    if not sums.is_file():
        return [f"{SUMS} is missing"] if _is_ours(folder) else None
    listed = _parse_sums(sums.read_text(encoding="utf-8"))
    present = {name for name in listed if (folder / name).is_file()}
    problems = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    known = {SUMS, *listed}
    added = harmful_additions(folder, known, read=read, may_have_more=may_have_more)
    problems += [f"{name} was added" for name in added]
    changed = (name for name in sorted(present) if _sha256(folder / name) != listed[name])
    return problems + [f"{name} was changed" for name in changed]


def environment_problems(folder: Path, may_lack: Collection[str] = ()) -> list[str] | None:
    """Compare the installed packages with those that the archive records; packages in ``may_lack`` may be missing.

    Returns:
        One sentence for each difference; empty if there is none; None if the archive records no environment.
    """
    file = folder / ENVIRONMENT
    if not file.is_file():
        return None
    recorded = _parse_environment(file.read_text(encoding="utf-8"))
    found = {name: _installed_version(name) for name in recorded}
    return [
        f"{name} is {found[name] or 'not installed'}, validated with {wanted}"
        for name, wanted in recorded.items()
        if found[name] != wanted and not (found[name] is None and name in may_lack)
    ]


def _is_ours(folder: Path) -> bool:
    """Return whether marsmith made the archive: then it had digests."""
    try:
        return "marsmith" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _parse_sums(text: str) -> dict[str, str]:
    listed = {}
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise RuntimeError(f"{SUMS}: not a line of sha256sum: {line!r}")
        listed[name] = digest.lower()
    return listed


def _parse_environment(text: str) -> Mapping[str, str]:
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {name: wanted for name, _, wanted in pairs}


def _installed_version(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
