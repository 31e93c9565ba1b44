"""Names of models, versions and archives, and the nearest valid name for a wrong one."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from marsmith.errors import UsageError

# TorchServe's own rule: https://github.com/pytorch/serve, model-archiver, check_model_name_regex_or_exit.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
# TorchServe accepts any text; a version is also a segment of a URL and a part of a file name.
MODEL_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.+]*")
# Invisible characters that are not in Unicode's category of format characters.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")


class ModelVersion(NamedTuple):
    """One version of one model."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def check_model_name(name: str) -> str:
    """Return ``name`` if TorchServe accepts it as a model name; else raise UsageError."""
    if not MODEL_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a model name that TorchServe accepts",
            tip="use letters, digits, '_', '-' and '.', and begin with a letter or a digit",
        )
    return name


def check_model_version(version: str) -> str:
    """Return ``version`` if it is valid in a URL and in a file name; else raise UsageError.

    This is the rule for new versions. ``check_named_version`` is the rule for versions that a server already has.
    """
    if not version.strip():
        raise UsageError("the version is empty", tip="name one, as in 1.0")
    if not MODEL_VERSION.fullmatch(version) or ".." in version:
        raise UsageError(
            f"{version!r} is not a model version",
            tip="use letters, digits, '_', '-', '.' (not twice in a row) and '+', and begin with a letter or a digit,"
            " as in 1.0",
        )
    return version


def check_named_version(version: str) -> str:
    """Return ``version`` if a request to a server can name it; else raise UsageError.

    Other tools allow versions that marsmith does not, and such a version must still be managed. TorchServe unquotes a
    path before it splits it, so a slash cannot be distinguished from the end of the version.
    """
    if not version or "/" in version or any(unicodedata.category(each) == "Cs" for each in version):
        raise UsageError(
            f"TorchServe cannot be asked for the version {version!r}: its name is empty or contains a slash",
            tip="marsmith stop and marsmith serve leave it out; marsmith repack --version gives it another name",
        )
    return version


def archive_file_name(name: str, version: str) -> str:
    """Return the archive's file name in a model store: ``<name>-<version>.mar``."""
    if ".." in name:
        raise UsageError(f"{name!r} has '..', and TorchServe refuses a file name with it", tip="give it another name")
    return f"{check_model_name(name)}-{check_model_version(version)}.mar"


def split_model_reference(reference: str) -> tuple[str, str | None]:
    """Split ``MODEL[:VERSION]`` into name and version; the version is None if none is given."""
    name, colon, version = reference.partition(":")
    return check_model_name(name), check_named_version(version) if colon else None


def is_hidden(character: str) -> bool:
    """Return whether a character controls a terminal, changes the direction of text, or is invisible."""
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} or character in _BLANK


def encodable(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode, as in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name in ``known`` most similar to ``word``; None if no similarity is at least ``cutoff`` (0 to 1)."""
    folded = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the nearest known name, else an empty text."""
    match = nearest(word, known)
    return f"; did you mean {match!r}?" if match else ""
