"""What an archive gets besides its own files: replies that its handler has given, and the record of its environment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from marsmith.archive.member import Member
from marsmith.formats.environment import Environment, render_environment
from marsmith.formats.examples import FILE_NAME as EXAMPLES_FILE
from marsmith.formats.examples import FOLDER as EXAMPLES_FOLDER
from marsmith.formats.examples import render_examples
from marsmith.formats.manifest import FILE_NAME as MANIFEST_FILE
from marsmith.formats.manifest import Manifest, render_manifest
from marsmith.replay import ExampleRequest, validate_examples
from marsmith.runner import Runner
from marsmith.sbom import render_sbom


@contextmanager
def linked_folder(manifest: Manifest, members: Sequence[Member]) -> Iterator[Path]:
    """Lay members out as an unpacked archive for a while, files by link."""
    with tempfile.TemporaryDirectory(prefix="marsmith-") as name:
        folder = Path(name)
        for member in members:
            place = folder / member.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(member.source, Path):
                place.symlink_to(member.source.resolve())
            else:
                place.write_bytes(member.source)
        (folder / MANIFEST_FILE).parent.mkdir(exist_ok=True)
        (folder / MANIFEST_FILE).write_text(render_manifest(manifest), encoding="utf-8")
        yield folder


def example_members(runner: Runner, requests: Sequence[ExampleRequest]) -> list[Member]:
    """Answer requests, and return them with their replies as members; none where there are no requests.

    Raises:
        HandlerError: one was refused, or something else came out on top.
    """
    validated = validate_examples(runner, requests)
    if not requests:
        return []
    return [
        Member(EXAMPLES_FILE, render_examples(validated).encode()),
        *(Member(f"{EXAMPLES_FOLDER}/{request.name}", request.body) for request in requests),
    ]


def environment_members(name: str, version: str, record: Environment, members: Sequence[Member]) -> list[Member]:
    """Return the record of the environment, and the same as CycloneDX, with the digests of the other members."""
    digests = {member.name: member.sha256() for member in members}
    return [
        Member("MAR-INF/environment.txt", render_environment(record).encode()),
        Member("MAR-INF/sbom.cdx.json", render_sbom(name, version, record, digests).encode()),
    ]
