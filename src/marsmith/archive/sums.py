"""``MAR-INF/SHA256SUMS``: the digest of every other file of an archive, in the format of ``sha256sum``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from marsmith.errors import FormatError

FILE_NAME = "MAR-INF/SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def render_sums(digests: Mapping[str, str]) -> str:
    """Render ``<SHA-256 in hex>  <name>`` lines, sorted by the code points of the name.

    For every valid mapping d, ``parse_sums(render_sums(d)) == d``.

    Args:
        digests: SHA-256 by name of the file, 64 lower-case hex digits.

    Raises:
        FormatError: a name is empty or would be escaped by sha256sum, or a digest is invalid.
    """
    problems = [problem for name, digest in digests.items() if (problem := _problem(name, digest))]
    if problems:
        raise FormatError(FILE_NAME, problems)
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def parse_sums(text: str, source: str = FILE_NAME) -> dict[str, str]:
    """Parse the lines into SHA-256 in hex by name.

    The parser is strict, so that accepted text has the same meaning for ``sha256sum --check``: lower-case digits, two
    spaces, no escapes, a newline after every line, no name twice.

    Raises:
        FormatError: lines violate the format; the message lists all of them.
    """
    if not text:
        return {}
    *lines, rest = text.split("\n")
    problems = [f"line {len(lines) + 1}: no newline at the end"] if rest else []
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if not match:
            problems.append(f"line {number}: expected 64 lower-case hex digits, two spaces and a name")
        elif match[2] in digests:
            problems.append(f"line {number}: {match[2]!r} stands twice")
        elif problem := _problem(match[2], match[1]):
            problems.append(f"line {number}: {problem}")
        else:
            digests[match[2]] = match[1]
    if problems:
        raise FormatError(source, problems)
    return digests


def _problem(name: str, digest: str) -> str | None:
    if not _DIGEST.fullmatch(digest):
        return f"{digest!r} is not a SHA-256 in lower-case hex"
    if not name:
        return "a name is empty"
    # sha256sum escapes a backslash and line ends; other control characters would mislead a reader.
    if "\\" in name or any(ord(character) < 0x20 or ord(character) == 0x7F for character in name):
        return f"the name {name!r} holds a backslash or a control character"
    return None
