"""Validated examples and environment records of an archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marsmith.archive.answers import may_compute_otherwise
from marsmith.archive.environment import Environment, render_environment
from marsmith.archive.examples import FILE_NAME as EXAMPLES_FILE
from marsmith.archive.examples import FOLDER as EXAMPLES_FOLDER
from marsmith.archive.examples import render_examples
from marsmith.archive.manifest import FILE_NAME as MANIFEST_FILE
from marsmith.archive.manifest import Manifest, render_manifest
from marsmith.archive.members import Member
from marsmith.archive.sbom import render_sbom
from marsmith.child_processes import temporary_folder
from marsmith.runtime.replay import ExampleRequest, validate_examples
from marsmith.runtime.runner import Runner


@contextmanager
def linked_folder(manifest: Manifest, members: Sequence[Member]) -> Iterator[Path]:
    """Yield a temporary folder that is laid out like an unpacked archive, with links to the files.

    Its manifest lacks marsmith's key, because the folder has no digests yet, and a worker refuses an archive of ours
    without digests.
    """
    with temporary_folder("marsmith-") as folder:
        for member in members:
            place = folder / member.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(member.source, Path):
                place.symlink_to(member.source.resolve())
            else:
                place.write_bytes(member.source)
        (folder / MANIFEST_FILE).parent.mkdir(exist_ok=True)
        (folder / MANIFEST_FILE).write_text(render_manifest(replace(manifest, marsmith=None)), encoding="utf-8")
        yield folder


@dataclass(frozen=True)
class ProvedExamples:
    """Examples with the replies of an archive.

    Attributes:
        members: requests with their replies.
        unproved: names of examples whose reply is only known by its digest, if other machines may compute it in another
            engine or precision. Their replies cannot be compared there.
    """

    members: list[Member]
    unproved: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """Return the part of export.json about them."""
        return {"repliesUnprovedElsewhere": list(self.unproved)} if self.unproved else {}


def proved_examples(
    runner: Runner, requests: Sequence[ExampleRequest], on_step: Callable[[str], None]
) -> ProvedExamples:
    """Answer requests.

    Args:
        runner: runner that has loaded the archive.
        requests: requests, with their expected labels.
        on_step: called with a message for each reply that other machines may not be able to compare.

    Raises:
        HandlerError: an example was refused, or has another top label.
    """
    validated = validate_examples(runner, requests)
    if not requests:
        return ProvedExamples([], ())
    replies = [
        Member(f"{EXAMPLES_FOLDER}/{one.reply_file}", one.recorded)
        for one in validated
        if one.reply_file is not None and one.recorded is not None
    ]
    elsewhere = may_compute_otherwise(runner.handler_settings)
    unproved = tuple(one.input for one in validated if elsewhere and one.reply_sha256 and one.reply_file is None)
    for name in unproved:
        on_step(
            f"the reply to {name} is bytes of an unknown kind: machines with another engine or precision cannot check"
        )
    listed = Member(EXAMPLES_FILE, render_examples(validated).encode())
    bodies = [Member(f"{EXAMPLES_FOLDER}/{request.name}", request.body) for request in requests]
    return ProvedExamples([listed, *bodies, *replies], unproved)


def environment_members(name: str, version: str, record: Environment, members: Sequence[Member]) -> list[Member]:
    """Return the record of the environment, and the same as CycloneDX with the digests of the other members."""
    digests = {member.name: member.sha256() for member in members}
    return [
        Member("MAR-INF/environment.txt", render_environment(record).encode()),
        Member("MAR-INF/sbom.cdx.json", render_sbom(name, version, record, digests).encode()),
    ]
