"""``MAR-INF/examples/``: requests with their validated replies, replayed wherever the archive is loaded.

``examples.json`` lists them; each input is a file beside it. A JSON reply is in the list. Any other reply is in the
list by its SHA-256; if its bytes can be compared, they are in a file beside the list. For the comparison of replies see
``archive.answers``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from marsmith.errors import FormatError
from marsmith.json_reader import read_json

FOLDER = "MAR-INF/examples"
FILE_NAME = f"{FOLDER}/examples.json"


@dataclass(frozen=True)
class ValidatedExample:
    """One request and its validated reply.

    Attributes:
        input: name of the file in ``MAR-INF/examples/`` with the request's body.
        content_type: content type of the request.
        status: HTTP status of the reply.
        reply: the reply if it is JSON; else None.
        reply_sha256: digest of the reply's bytes if it is not JSON; else None.
        tolerance: maximum absolute difference of any number in the reply.
        reply_file: name of the file in ``MAR-INF/examples/`` with the reply; None if there is none.
        recorded: content of that file, if it was read; not part of the list.
    """

    input: str
    content_type: str
    status: int
    reply: Any
    reply_sha256: str | None
    tolerance: float
    reply_file: str | None = None
    recorded: bytes | None = field(default=None, repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """Return the entry of the list."""
        left_out = {"recorded"} | ({"reply_file"} if self.reply_file is None else set())
        return {key: value for key, value in vars(self).items() if key not in left_out}


def render_examples(examples: Sequence[ValidatedExample]) -> str:
    """Render ``examples.json``."""
    return json.dumps([example.record() for example in examples], indent=2, ensure_ascii=False) + "\n"


def parse_examples(text: str, source: str = FILE_NAME) -> list[ValidatedExample]:
    """Parse ``examples.json``.

    Raises:
        FormatError: the text is not JSON, or not a list of examples.
    """
    try:
        items = read_json(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(source, [f"not JSON: {error}"]) from None
    if not isinstance(items, list):
        raise FormatError(source, ["expected a list of examples"])
    problems = [problem for i, item in enumerate(items) for problem in _problems(item, f"[{i}]")]
    if problems:
        raise FormatError(source, problems)
    return [ValidatedExample(**item) for item in items]


_KINDS: dict[str, tuple[type, ...]] = {
    "input": (str,),
    "content_type": (str,),
    "status": (int,),
    "reply": (object,),
    "reply_sha256": (str, type(None)),
    "tolerance": (int, float),
    "reply_file": (str,),
}
_OPTIONAL = frozenset({"reply_file"})


def _problems(item: Any, place: str) -> list[str]:
    """Return what is wrong with one entry of the list."""
    if not isinstance(item, dict):
        return [f"{place}: expected a mapping"]
    wrong = [f"{place}: unknown key {key!r}" for key in sorted(item.keys() - _KINDS.keys())]
    wrong += [f"{place}: missing key {key!r}" for key in sorted(_KINDS.keys() - item.keys() - _OPTIONAL)]
    known = [key for key in _KINDS if key in item]
    wrong += [f"{place}: {key} is {item[key]!r}" for key in known if not isinstance(item[key], _KINDS[key])]
    for key in ("input", "reply_file"):
        name = item.get(key)
        if isinstance(name, str) and ("/" in name or name in {"", ".", ".."}):
            wrong.append(f"{place}: {key} {name!r} is not a file name")
    return wrong
