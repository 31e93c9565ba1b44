"""Paths and URLs: files of this machine, and objects of a store through fsspec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from marsmith.errors import AccessError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

# By scheme: what the extra installs, and the extra.
SCHEMES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs")}


def is_url(text: str) -> bool:
    """Return whether a text names an object of a store."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        MissingDependencyError: the package for this kind of store is not installed.
    """
    package, extra = SCHEMES[url.partition("://")[0]]
    try:
        from fsspec.core import url_to_fs

        # Listings change while a batch runs: others write parts.
        system, path = url_to_fs(url, use_listings_cache=False)
    except ImportError:
        raise MissingDependencyError(package, extra=extra) from None
    return system, path


def opened(address: str) -> BinaryIO:
    """Open a path or URL for reading.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_url(address):
        return Path(address).open("rb")
    system, path = file_system(address)
    file: BinaryIO = refusable(address, lambda: system.open(path, "rb"))
    return file


def piece(address: str, start: int, size: int) -> bytes:
    """Return ``size`` bytes of a file from ``start`` on; fewer at its end.

    Raises:
        OSError: it cannot be read.
    """
    if is_url(address):
        system, path = file_system(address)
        return bytes(refusable(address, lambda: system.cat_file(path, start=start, end=start + size)))
    with open(address, "rb", buffering=0) as file:  # noqa: PTH123 - one call fewer for each input
        return os.pread(file.fileno(), size, start)


def refusable(address: str, ask: Callable[[], Any]) -> Any:
    """Return what a store answers.

    Raises:
        FileNotFoundError: there is no such object.
        AccessError: the store refuses it, or cannot be reached.
    """
    try:
        return ask()
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise AccessError(
            f"{address}: the store refuses this: {error}", tip="check the rights of the credentials in use"
        ) from None
    except Exception as error:
        if isinstance(error, FileExistsError) or _is_conflict(error):
            raise FileExistsError(address) from None
        # The libraries of stores raise errors of their own, of which none is known here.
        kind = type(error).__name__
        raise AccessError(f"{address}: {kind}: {error}", tip="check the address and the credentials") from None


def _is_conflict(error: Exception) -> bool:
    """Return whether a store refuses to create an object, because there is one of that name."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return code in {"PreconditionFailed", "ConditionalRequestConflict"}
