"""Renewal of an archive's handler: the same weights and settings, with the code of the project's handlers of today."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from marsmith.archive.environment import FILE_NAME as ENVIRONMENT_FILE
from marsmith.archive.environment import parse_environment
from marsmith.archive.manifest import Manifest
from marsmith.archive.members import Member
from marsmith.build.assembly import environment_members
from marsmith.errors import BuildError, HandlerError
from marsmith.runtime.imports import follow_imports


def renewed(manifest: Manifest, old: Mapping[str, Path], handlers: Path) -> list[Member]:
    """Return the members of an archive with its handler, and all that it imports, as they are in a folder now.

    Args:
        manifest: of the new archive.
        old: a file for each member of the old archive, in a folder that is laid out like it.
        handlers: folder of the handlers.

    Raises:
        BuildError: the folder has no such handler, or one of them is not valid Python.
    """
    name = handler_file(manifest)
    new = handlers / name
    if name not in old:
        raise BuildError(f"the handler {manifest.handler} is not a file of the archive, so it cannot be renewed")
    if not new.is_file():
        raise BuildError(
            f"{handlers} has no {name}, so the archive's handler cannot be renewed",
            tip="copy it there, and adapt it to the marsmith_handler beside it; without --renew-handlers it stays",
        )
    code = set(_reached(old[name]))
    kept = {member: path for member, path in old.items() if path not in code}
    named = {**kept, **{file.relative_to(handlers).as_posix(): file for file in _reached(new)}}
    return _with_bill(manifest, [Member(member, path) for member, path in named.items()])


def handler_file(manifest: Manifest) -> str:
    """Return the name of the handler's file, if it is a member."""
    name = manifest.handler.partition(":")[0]
    return name if name.endswith(".py") else f"{name}.py"


def _reached(handler: Path) -> list[Path]:
    try:
        return follow_imports(handler)[0]
    except HandlerError as error:
        raise BuildError(error.message, tip=error.tip) from None


def _with_bill(manifest: Manifest, members: list[Member]) -> list[Member]:
    """Render the bill of materials anew: it has the digests of the members."""
    record = next((member for member in members if member.name == ENVIRONMENT_FILE), None)
    if record is None or not isinstance(record.source, Path):
        return members
    environment = parse_environment(record.source.read_text(encoding="utf-8"), ENVIRONMENT_FILE)
    others = [member for member in members if member.name not in {ENVIRONMENT_FILE, "MAR-INF/sbom.cdx.json"}]
    return [*others, *environment_members(manifest.model_name, manifest.model_version, environment, others)]
