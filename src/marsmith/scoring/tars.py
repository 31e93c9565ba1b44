"""Members of plain tar files, such as the shards of WebDataset, each readable by its place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from marsmith.errors import UsageError
from marsmith.names import encodable
from marsmith.scoring import urls
from marsmith.scoring.items import Item

# Before the places of members, see ``member``.
MEMBER = "tar:"


def members(archive: str, number: int, suffix: str | None, stamp: str) -> Iterator[Item]:
    """Yield the files in a tar file.

    Args:
        archive: path or URL.
        number: of the source.
        suffix: without a dot; only members whose name ends with it. None: all.
        stamp: of the tar file.

    Raises:
        UsageError: it is not a tar file, is cut off, or has a sparse member.
        OSError: it cannot be read.
    """
    with urls.opened(archive) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if member.issparse():
                        raise UsageError(
                            f"{archive}: the member {member.name!r} is stored without its holes, and cannot be read",
                            tip="make the .tar without --sparse",
                        )
                    if member.isreg() and (suffix is None or member.name.endswith(f".{suffix}")):
                        key = encodable(f"{archive}/{member.name}")
                        place = f"{MEMBER}{member.offset_data}:{archive}"
                        yield Item(key, member.size, stamp, place, number)
        except tarfile.TarError as error:
            raise UsageError(f"{archive}: not a whole tar file: {error}") from None


def member(place: str) -> tuple[str, int]:
    """Return of a member's place: path or URL of the tar file, and where its bytes begin."""
    start, archive = place.removeprefix(MEMBER).split(":", 1)
    return archive, int(start)
