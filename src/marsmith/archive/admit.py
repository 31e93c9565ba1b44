"""Admission: the one decision whether an archive may be run, served or shipped, for every command.

An archive is code. An admitted archive is complete, matches its own digests, and is signed if the policy requires it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from marsmith.archive.read import Archive
from marsmith.archive.verify import Check, verify
from marsmith.errors import MarsmithError, VerificationError

Makers = Literal["any", "ours"]
Signatures = Literal["optional", "required"]

SETTINGS = "config/marsmith.yaml"
# More archives than one command needs; each entry holds a few sentences.
_REMEMBERED = 256

_File = tuple[Path, tuple[int, ...]]
_digests: dict[_File, str] = {}


@dataclass(frozen=True)
class Policy:
    """Policy for the archives of a project. By default an archive must only match its own digests.

    Attributes:
        archives: ``any``, or only ``ours``; those of other tools have no digests.
        signatures: whether a signature is ``required`` or ``optional``.
        trusted_keys: public keys; a signature beside an archive must be by one of them.
    """

    archives: Makers = "any"
    signatures: Signatures = "optional"
    trusted_keys: tuple[Path, ...] = ()


ANY = Policy()


@dataclass(frozen=True)
class Admitted:
    """An archive that may be run.

    Attributes:
        archive: the opened archive.
        warnings: what could not be verified, one sentence each.
    """

    archive: Archive
    warnings: tuple[str, ...] = ()


def admit(source: Archive | Path, policy: Policy, *, expected_digest: str | None = None) -> Admitted:
    """Verify a whole archive and return it, or refuse it. None of its code is run.

    Within one process an archive file is read once, unless it is written meanwhile.

    Args:
        source: the archive, or its path.
        policy: requirements besides its own digests.
        expected_digest: required SHA-256 in hex; None for any.

    Raises:
        HostileArchiveError: its structure is dangerous or inconsistent.
        ArchiveError: it is not an archive, or it is damaged.
        FormatError: its manifest or its list of digests violates the format.
        VerificationError: it does not match its digests, or the policy does not admit it; the message lists all
            reasons.
    """
    archive = source if isinstance(source, Archive) else Archive.open(source)
    checks = static_checks(archive)
    problems = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    problems += policy_problems(archive, policy, expected_digest)
    if problems:
        lines = "\n".join(f"{archive.path.name}: {problem}" for problem in problems)
        raise VerificationError(lines, tip=_tip(archive, problems))
    warnings = (check.detail for check in checks if check.outcome == "warning")
    return Admitted(archive, tuple(f"{archive.path.name}: {text}" for text in warnings))


def static_checks(archive: Archive) -> tuple[Check, ...]:
    """Return the checks of an archive, except for its environment and its answers."""
    if archive.kind == "folder":
        return verify(archive, environment=False).checks
    return _checks_of(archive.path.resolve(), _identity(archive.path))


def policy_problems(archive: Archive, policy: Policy, expected_digest: str | None = None) -> list[str]:
    """Return why a policy does not admit an archive, whatever its content; empty if it does."""
    return list(_policy_problems(archive, policy, expected_digest))


def digest_of(archive: Archive) -> str:
    """Return ``Archive.digest``. A file is read once in a process, unless it is written meanwhile."""
    if archive.kind == "folder":
        return archive.digest()
    file = (archive.path.resolve(), _identity(archive.path))
    return _digests.get(file) or _note(file, archive.digest())


def note_digest(file: Path, inode: int, digest: str) -> None:
    """Spare a file that this process has just written from being read for its digest.

    Args:
        file: the file.
        inode: of what was written; if another file has taken its place, nothing is noted.
        digest: its SHA-256 in hex.
    """
    if file.stat().st_ino == inode:
        _note((file.resolve(), _identity(file)), digest)


def _note(file: _File, digest: str) -> str:
    if len(_digests) >= _REMEMBERED:
        del _digests[next(iter(_digests))]
    _digests[file] = digest
    return digest


def _policy_problems(archive: Archive, policy: Policy, expected_digest: str | None) -> Iterator[str]:
    if policy.archives == "ours" and not archive.is_ours:
        yield f"maker: another tool built it, and {SETTINGS} has archives: ours"
    if expected_digest is not None:
        digest = digest_of(archive)
        if digest != expected_digest:
            version = f"{archive.manifest.model_name}:{archive.manifest.model_version}"
            yield f"digest: {version} is bound to the bytes with SHA-256 {expected_digest}, this file has {digest}"
    if problem := _signature_problem(archive, policy):
        yield f"signature: {problem}"


def _signature_problem(archive: Archive, policy: Policy) -> str | None:
    """Return the problem with a signature that exists or is required; None if there is none."""
    if not policy.trusted_keys:
        return f"no key is trusted in {SETTINGS}" if policy.signatures == "required" else None
    # Imported late, because most projects have no trusted keys and do not need cryptography.
    from marsmith.archive.signature import signature_path, verify_signature

    if archive.kind == "folder":
        return "a folder cannot be signed" if policy.signatures == "required" else None
    if policy.signatures == "optional" and not signature_path(archive.path).exists():
        return None
    try:
        verify_signature(archive.path, *policy.trusted_keys, digest=digest_of(archive))
    except MarsmithError as error:
        return error.message
    return None


def _tip(archive: Archive, problems: Sequence[str]) -> str:
    """Return what to do about the first of the problems."""
    kind = problems[0].partition(":")[0]
    if kind == "digests" and archive.kind == "folder" and "__pycache__" in problems[0]:
        return f"if Python has left it there: rm -r {archive.path}/__pycache__"
    if kind == "maker":
        return f"if you trust its origin: marsmith repack {archive.path}"
    if kind == "digest":
        version = f"{archive.manifest.model_name}:{archive.manifest.model_version}"
        return f"give it a version number of its own, or unregister the present one: marsmith unregister {version}"
    if kind == "signature":
        return f"if you trust it: marsmith sign {archive.path} --key PRIVATE.pem"
    return "do not use this archive: copy it again, or build it again from its sources"


def _identity(path: Path) -> tuple[int, ...]:
    """Return values that change when a file is written or replaced."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(_REMEMBERED)
def _checks_of(path: Path, _identity: tuple[int, ...]) -> tuple[Check, ...]:
    return verify(Archive.open(path), environment=False).checks
