"""Messages for errors of the system about files: what failed, for which user, and what to do."""

from __future__ import annotations

import errno
import os
import pwd
import stat
import tempfile
from pathlib import Path
from shlex import quote

from marsmith.errors import AccessError, ServerError

_REFUSED = {errno.EACCES, errno.EPERM}
_NO_MORE_FILES = {errno.EMFILE, errno.ENFILE}
_FULL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file may not be as large (ulimit -f)",
}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
_OTHERS = {
    errno.ENOENT: "No such file or folder",
    errno.EISDIR: "it is a folder, and a file is expected there",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "too many links lead from one to the next",
    errno.EBUSY: "something else uses it",
    errno.ETXTBSY: "it is a program that runs",
    errno.EIO: "the disk does not answer",
    errno.ESTALE: "the server of the file system has lost it",
}


def access_error(error: OSError) -> AccessError | None:
    """Convert an error of the system into a message; None if it is not about a file, or is a fault of marsmith."""
    named = error.filename2 or error.filename
    path = Path(os.fsdecode(named)).absolute() if isinstance(named, str | bytes | os.PathLike) and named else None
    if error.errno in _FULL:
        return _full(error.errno, path)
    if error.errno in _NO_MORE_FILES:
        return AccessError("too many files are open", tip="ulimit -n shows how many may be, ulimit -n 4096 allows more")
    if path is not None:
        return _about(path, error.errno)
    if error.errno == errno.ENOENT and "temporary directory" in str(error):
        return AccessError(f"there is no temporary folder that {_user()} can write to", tip="set TMPDIR to one")
    return None


def described(error: OSError, path: Path) -> AccessError:
    """Convert any error of the system that occurred while ``path`` was read or written into a message.

    Args:
        error: the system's error.
        path: path for the message if the error has none, or only that of the temporary file for ``path``.
    """
    named = Path(os.fsdecode(error.filename2 or error.filename or path))
    if named.parent == path.parent and named.name.startswith(f".{path.name}."):
        named = path
    return access_error(OSError(error.errno, error.strerror, str(named))) or AccessError(f"{path}: {error}")


def state_error(error: OSError) -> ServerError:
    """Convert an error of the system about a file of the server's state into one that callers expect."""
    found = access_error(error)
    return ServerError(found.message, tip=found.tip) if found else ServerError(str(error))


def user_name(uid: int) -> str:
    """Return the name of a user; the number if there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _about(path: Path, number: int | None) -> AccessError | None:
    place = _nearest(path)
    if number in _REFUSED:
        return _refused(path, place)
    if number == errno.EROFS:
        tip = f"its file system is mounted read-only: findmnt -T {quote(str(place))}"
        return AccessError(f"{path} cannot be written by {_user()}: read-only file system", tip=tip)
    if number in _NO_FOLDER and not place.is_dir():
        tip = f"mv {quote(str(place))} {quote(f'{place}.old')}"
        return AccessError(f"{path} cannot be written: {place} is a file, and a folder is expected there", tip=tip)
    if number == errno.EEXIST:
        return AccessError(f"{path} exists already", tip=f"mv {quote(str(path))} {quote(f'{path}.old')}")
    return AccessError(f"{path}: {_OTHERS[number]}") if number in _OTHERS else None


def _full(number: int, path: Path | None) -> AccessError:
    """A write error does not name the full disk, so the full disks are searched."""
    looked_at = [path] if path else [Path.cwd(), Path(tempfile.gettempdir())]
    places = list(dict.fromkeys(_nearest(each.absolute()) for each in looked_at))
    full = [place for place in places if path or _is_full(place)] or places
    what = str(path) if path else "a file"
    return AccessError(
        f"{what} cannot be written by {_user()}: {_FULL[number]} on the disk of {' and '.join(map(str, full))}",
        tip=f"df -h {' '.join(quote(str(place)) for place in full)}; `make clean` removes what can be built again",
    )


def _is_full(place: Path) -> bool:
    try:
        return os.statvfs(place).f_bavail == 0
    except OSError:
        return False


def _refused(path: Path, place: Path) -> AccessError:
    if place == path and not _may(path, os.R_OK):
        verb = "read"
    else:
        verb = "written" if _may(place if place.is_dir() else place.parent, os.X_OK) else "reached"
        if place == path and _may(path, os.W_OK) and not path.is_dir():
            # A file is created and replaced by writing its folder.
            place = path.parent
    return AccessError(f"{path} cannot be {verb} by {_user()}: permission denied", tip=_way_out(place))


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _way_out(place: Path) -> str:
    """Return what to do about a file or a folder without access."""
    status, quoted = place.stat(), quote(str(place))
    owner, user, mode = user_name(status.st_uid), user_name(os.geteuid()), stat.S_IMODE(status.st_mode)
    if status.st_uid == os.geteuid():
        return f"{place} is yours (mode {mode:04o}): chmod u+rwX {quoted}; if that changes nothing, lsattr -d {quoted}"
    return f"{place} belongs to {owner} (mode {mode:04o}): run this as {owner}, or sudo chown -R {user} {quoted}"


def _nearest(path: Path) -> Path:
    """Return the path, or its first existing parent, which may be a file."""
    for each in (path, *path.parents):
        try:
            each.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            # A path without access is in a folder that cannot be entered.
            continue
        return each
    return Path("/")


def _user() -> str:
    return f"the user {user_name(os.geteuid())} (uid {os.geteuid()})"
