"""Verification of an archive: structure, digests, environment, answers and signature.

All checks are reported; a check that depends on a failed one is skipped. Code from the archive runs only on request
(``replay``), and only after all other checks have passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from marsmith import files
from marsmith.archive import environment as environment_format
from marsmith.archive import examples as examples_format
from marsmith.archive import manifest as manifest_format
from marsmith.archive import sums as sums_format
from marsmith.archive.environment import compare, parse_environment
from marsmith.archive.examples import ValidatedExample, parse_examples
from marsmith.archive.manifest import render_manifest
from marsmith.archive.read import Archive
from marsmith.archive.reference import read_reference
from marsmith.archive.sums import render_sums
from marsmith.errors import ArchiveError, FormatError, VerificationError
from marsmith.names import MODEL_NAME, MODEL_VERSION

Outcome = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: name of the check, such as ``digests``.
        outcome: ``warning`` and ``skipped`` are not failures, but do not confirm anything.
        detail: a sentence; for a failure it names the member.
    """

    name: str
    outcome: Outcome
    detail: str

    @property
    def ok(self) -> bool:
        """Whether the check did not fail."""
        return self.outcome != "failed"


@dataclass(frozen=True)
class Verification:
    """The result of verifying one archive."""

    archive: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The failed checks, in order."""
        return tuple(check for check in self.checks if not check.ok)

    def require(self) -> Verification:
        """Return this if no check failed.

        Raises:
            VerificationError: there are failures; the message lists all of them.
        """
        if self.ok:
            return self
        lines = [f"{self.archive.name}: {check.name}: {check.detail}" for check in self.failures]
        raise VerificationError("\n".join(lines), tip="do not serve this archive; build it again from its sources")


def verify(
    archive: Archive,
    *,
    environment: bool = True,
    replay: Callable[[Archive], Sequence[Check]] | None = None,
    key: Path | None = None,
    also: Sequence[Check] = (),
) -> Verification:
    """Check an opened archive.

    Args:
        archive: an opened archive; ``Archive.open`` has checked its structure.
        environment: whether to compare ``MAR-INF/environment.txt`` with this Python; differences are warnings.
        replay: last check, which runs code from the archive, such as ``replay.replay_checks``; None for none.
        key: public key of the required signature.
        also: further checks, which must pass before code runs.

    Returns:
        Every check with its outcome; ``.require()`` turns failures into an error.
    """
    checks = [*_structure(archive), *_manifest(archive), *_digests(archive), *_examples(archive), *_reference(archive)]
    if key is not None:
        checks.append(_signature(archive, key))
    checks.extend(also)
    if environment:
        checks.extend(environment_checks(archive))
    if replay is not None:
        trusted = all(check.ok for check in checks)
        skipped = Check("replay", "skipped", "not run: code from an archive runs only when every other check holds")
        checks.extend(replay(archive) if trusted else [skipped])
    return Verification(archive.path, tuple(checks))


def _results(name: str, problems: Iterable[str], good: str) -> list[Check]:
    return [Check(name, "failed", problem) for problem in problems] or [Check(name, "ok", good)]


def _structure(archive: Archive) -> list[Check]:
    """Compare every header byte of an archive of ours; ``Archive.open`` has refused dangerous structures."""
    problems = archive.layout_problems() if archive.is_ours else []
    if archive.is_ours and archive.sums is None:
        problems.append(f"{sums_format.FILE_NAME} is missing")
    if archive.is_ours and archive.manifest.marsmith is None:
        problems.append(f"{manifest_format.FILE_NAME} lacks the key 'marsmith', though {archive.marks[0]} is there")
    return _results("structure", problems, f"{len(archive.members)} members, nothing hidden and nothing ambiguous")


def _manifest(archive: Archive) -> list[Check]:
    manifest = archive.manifest
    # TorchServe cuts the names to their last part; ours have only that part.
    names = archive.members.keys() if archive.is_ours else {Path(name).name for name in archive.members}
    problems = []
    if not MODEL_NAME.fullmatch(manifest.model_name):
        problems.append(f"modelName: TorchServe refuses {manifest.model_name!r}")
    if archive.is_ours:
        problems += _our_manifest(archive)
    fields = {
        "serializedFile": manifest.serialized_file,
        "modelFile": manifest.model_file,
        "requirementsFile": manifest.requirements_file,
        "configFile": manifest.config_file,
        "handler": _handler_file(manifest.handler),
    }
    named = {key: name if archive.is_ours else Path(name).name for key, name in fields.items() if name}
    problems += [f"{key}: no member {name!r}" for key, name in named.items() if name not in names]
    return _results("manifest", problems, f"{manifest.model_name} version {manifest.model_version}")


def _our_manifest(archive: Archive) -> list[str]:
    manifest = archive.manifest
    problems = []
    if manifest.format_version != manifest_format.FORMAT_VERSION:
        problems.append(f"formatVersion: {manifest.format_version!r} is not {manifest_format.FORMAT_VERSION}")
    if not MODEL_VERSION.fullmatch(manifest.model_version):
        problems.append(f"modelVersion: {manifest.model_version!r} cannot stand in a URL")
    if archive.text(manifest_format.FILE_NAME) != render_manifest(manifest):
        problems.append(f"{manifest_format.FILE_NAME} is not printed as marsmith prints it")
    return problems


def _handler_file(handler: str) -> str | None:
    """Return the member of a handler's entry; None for a built-in handler, which has no suffix."""
    file = handler.split(":", 1)[0]
    return file if file.endswith((".py", ".so", ".dylib")) else None


def _digests(archive: Archive) -> list[Check]:
    if archive.sums is None:
        problems = _changed(archive, {})
        if problems or archive.is_ours:
            return _results("digests", problems, "no digests to compare with")
        return [
            Check("digests", "warning", "made by another tool: it has no digests, so its content cannot be verified")
        ]
    problems = []
    if archive.text(sums_format.FILE_NAME) != render_sums(archive.sums):
        problems.append(f"{sums_format.FILE_NAME} is not sorted as marsmith sorts it")
    present = archive.members.keys() - {sums_format.FILE_NAME}
    missing, added = sorted(archive.sums.keys() - present), sorted(present - archive.sums.keys())
    problems += [f"missing: member {name!r} is listed and not in the archive" for name in missing]
    problems += [f"added: member {name!r} is in the archive and not listed" for name in added]
    problems += _changed(archive, archive.sums)
    return _results("digests", problems, f"{len(present)} members match {sums_format.FILE_NAME}")


def _changed(archive: Archive, sums: Mapping[str, str]) -> list[str]:
    """Compare every content with its digest."""
    problems = []
    for name, digest_or_problem in _contents(archive):
        if isinstance(digest_or_problem, ArchiveError):
            problems.append(digest_or_problem.message.removeprefix(f"{archive.path.name}: "))
        elif name in sums and sums[name] != digest_or_problem:
            problems.append(f"changed: member {name!r} has SHA-256 {digest_or_problem}, listed is {sums[name]}")
    return problems


def _contents(archive: Archive) -> Iterator[tuple[str, str | ArchiveError]]:
    """Yield the digest or the problem of every member. Damage in a .tar.gz ends it; other kinds continue."""
    if archive.kind == "tar.gz":
        try:
            for name, stream in archive.walk():
                yield name, files.sha256_of(stream)
        except ArchiveError as error:
            yield "", error
        return
    for name in archive.members:
        try:
            with archive.open_member(name) as stream:
                yield name, files.sha256_of(stream)
        except ArchiveError as error:  # Each member is judged separately.
            yield name, error


def environment_checks(archive: Archive) -> list[Check]:
    """Compare the recorded environment with this Python; differences are warnings."""
    try:
        text = archive.text(environment_format.FILE_NAME)
        if text is None:
            return [Check("environment", "skipped", "the archive records no environment")]
        recorded = parse_environment(text, f"{archive.path.name}/{environment_format.FILE_NAME}")
    except (ArchiveError, FormatError) as error:
        return [Check("environment", "failed", error.message)]
    warnings = [Check("environment", "warning", str(difference)) for difference in compare(recorded)]
    return warnings or [Check("environment", "ok", "this Python has the recorded versions")]


def _signature(archive: Archive, key: Path) -> Check:
    from marsmith.archive.signature import verify_signature

    try:
        signed = verify_signature(archive.path, key)
    except (VerificationError, ArchiveError) as error:
        return Check("signature", "failed", error.message)
    return Check("signature", "ok", f"signed as {signed.signed_name!r} with key {signed.key_fingerprint}")


def read_examples(archive: Archive) -> list[ValidatedExample] | None:
    """Return the archive's examples; None if there are none.

    Raises:
        ArchiveError: the list is damaged, or an example's input is not a member.
        FormatError: the list violates the format.
    """
    text = archive.text(examples_format.FILE_NAME)
    if text is None:
        return None
    source = f"{archive.path.name}/{examples_format.FILE_NAME}"
    try:
        examples = parse_examples(text, source)
    except RecursionError:
        raise FormatError(source, ["nested too deeply"]) from None
    for name in (name for example in examples for name in (example.input, example.reply_file)):
        # Only names of members: an input such as ../../x would be read from outside the archive.
        if name is not None and f"{examples_format.FOLDER}/{name}" not in archive.members:
            raise ArchiveError(f"{archive.path.name}: {examples_format.FILE_NAME}: no member {name!r:.200}")
    return examples


def _examples(archive: Archive) -> list[Check]:
    try:
        examples = read_examples(archive)
    except (ArchiveError, FormatError) as error:
        return [Check("examples", "failed", error.message)]
    if examples is None:
        return [Check("examples", "skipped", "the archive holds no examples")]
    return [Check("examples", "ok", f"{len(examples)} examples with their inputs")]


def _reference(archive: Archive) -> list[Check]:
    try:
        reference = read_reference(archive)
    except (ArchiveError, FormatError) as error:
        return [Check("reference", "failed", error.message)]
    if reference is None:
        return []
    return [Check("reference", "ok", f"{len(reference.statistics)} statistics of {reference.inputs} inputs")]
