"""The rows of a part: what each input got, in typed columns where all replies of an archive have one form.

The form is that of the archive's validated examples, or what a handler of ours is known to give:

- ``classes``: ``{label: probability}``, as ``labels`` and ``probabilities``, and the first of both
- ``vector``: a list of numbers
- ``boxes``: a list of ``{label: [x1, y1, x2, y2], "score": s}``, as ``labels``, ``boxes`` and ``scores``
- ``json``: anything else, as text in ``reply``

A reply of another form than the archive's examples is in ``reply`` too.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marsmith.archive import Archive
from marsmith.archive.verify import read_examples
from marsmith.json_reader import read_json

if TYPE_CHECKING:
    import pyarrow as pa

# The lowest status of a reply that is an error.
ERROR = 400
_SCORE, _CORNERS = "score", 4
_KNOWN = {
    "image_classifier_handler": "classes",
    "text_classifier_handler": "classes",
    "text_embedding_handler": "vector",
    "object_detector_handler": "boxes",
}


@dataclass(frozen=True)
class Row:
    """What one input got.

    Attributes:
        key: of the input.
        status: HTTP status of the reply; also of an input that no handler has seen, such as 404 for a missing file.
        body: content of the reply; empty for an input that no handler has answered.
        content_type: of the body.
        error: what is wrong with the input, in words; empty for a reply.
    """

    key: str
    status: int
    body: bytes = b""
    content_type: str = ""
    error: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the input got no right answer."""
        return self.status >= ERROR


def reply_form(archive: Archive) -> str:
    """Return the form of an archive's replies.

    Raises:
        ArchiveError: its examples cannot be read.
        FormatError: their list violates the format.
    """
    examples = [example for example in read_examples(archive) or [] if example.status < ERROR]
    if examples:
        found = {form_of(example.reply) for example in examples}
        return found.pop() if len(found) == 1 else "json"
    module = archive.manifest.handler.partition(":")[0].rpartition("/")[2].removesuffix(".py")
    return _KNOWN.get(module, "json") if archive.is_ours else "json"


def form_of(reply: Any) -> str:
    """Return the form of one reply."""
    return next((form for form, split in _FORMS.items() if split(reply) is not None), "json")


def to_table(rows: Sequence[Row], form: str) -> pa.Table:
    """Return the rows as a table, whose columns depend on nothing but the form."""
    import pyarrow as pa

    split = _FORMS.get(form)
    names = _columns(form)
    values: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        parsed = _parsed(row) if split and not row.is_bad else None
        typed = split(parsed) if split and parsed is not None else None
        own = {"key": row.key, "status": row.status, "error": _error(row) if row.is_bad else None}
        own |= typed or {"reply": None if row.is_bad else _text(row)}
        for name in names:
            values[name].append(own.get(name))
    return pa.table({name: pa.array(values[name], kind) for name, kind in names.items()})


def reply_of(row: Mapping[str, Any]) -> Any:
    """Return the reply of a row of a part as the handler gave it; None if there is none.

    Args:
        row: values by column, as pyarrow's ``to_pylist`` gives them.
    """
    if row.get("vector") is not None:
        return row["vector"]
    if row.get("boxes") is not None:
        found = zip(row["labels"], row["boxes"], row["scores"], strict=True)
        return [{label: box, _SCORE: score} for label, box, score in found]
    if row.get("labels") is not None:
        return dict(zip(row["labels"], row["probabilities"], strict=True))
    text = row.get("reply")
    if text is None:
        return None
    try:
        return read_json(text)
    except ValueError:
        return text


def _columns(form: str) -> dict[str, Any]:
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    typed: dict[str, dict[str, Any]] = {
        "classes": {"label": pa.string(), "probability": pa.float64(), "labels": texts, "probabilities": numbers},
        "vector": {"vector": pa.list_(pa.float32())},
        "boxes": {"labels": texts, "boxes": pa.list_(pa.list_(pa.float32())), "scores": numbers},
        "json": {},
    }
    return {"key": pa.string(), "status": pa.int16(), **typed[form], "reply": pa.string(), "error": pa.string()}


def _classes(reply: Any) -> dict[str, Any] | None:
    if not isinstance(reply, dict) or not reply or not all(map(_is_number, reply.values())):
        return None
    labels, probabilities = list(reply), [float(value) for value in reply.values()]
    if not all(0 <= value <= 1 for value in probabilities):
        return None
    best = max(range(len(labels)), key=lambda index: probabilities[index])
    return {
        "label": labels[best],
        "probability": probabilities[best],
        "labels": labels,
        "probabilities": probabilities,
    }


def _vector(reply: Any) -> dict[str, Any] | None:
    return {"vector": reply} if isinstance(reply, list) and reply and all(map(_is_number, reply)) else None


def _boxes(reply: Any) -> dict[str, Any] | None:
    if not isinstance(reply, list):
        return None
    labels, boxes, scores = [], [], []
    for each in reply:
        names = [name for name in each if name != _SCORE] if isinstance(each, dict) else []
        box = each[names[0]] if len(names) == 1 and _is_number(each.get(_SCORE)) else None
        if not isinstance(box, list) or len(box) != _CORNERS or not all(map(_is_number, box)):
            return None
        labels.append(names[0])
        boxes.append(box)
        scores.append(float(each[_SCORE]))
    return {"labels": labels, "boxes": boxes, "scores": scores}


_FORMS: dict[str, Callable[[Any], dict[str, Any] | None]] = {"classes": _classes, "vector": _vector, "boxes": _boxes}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(row: Row) -> Any:
    try:
        return read_json(row.body)
    except ValueError:
        return None


def _text(row: Row) -> str:
    """Return the body as text; in base64 if it is none."""
    try:
        return row.body.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(row.body).decode("ascii")


def _error(row: Row) -> str:
    """Return the words of an error: those of marsmith, or the message in the handler's reply."""
    if row.error:
        return row.error
    parsed = _parsed(row)
    message = parsed.get("message") if isinstance(parsed, dict) else None
    return message if isinstance(message, str) else _text(row)
