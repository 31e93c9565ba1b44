"""Class names of a classifier, from a recipe's labels in any of the usual forms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from marsmith.errors import ExportError

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_TIP = (
    'give ["ant", "bee"] in the order of the outputs, {0: "ant", 1: "bee"} (index_to_name, id2label; indices may '
    'be text), or {"ant": 0, "bee": 1} (class_to_idx)'
)


def class_names(labels: object, outputs: int) -> list[str]:
    """Return the name of each output, in order.

    Args:
        labels: a list or tuple of names; a mapping of index to name, or to ``[id, name]`` as Keras and TorchServe have
            it; or a mapping of name to index.
        outputs: number of outputs of the module.

    Raises:
        ExportError: the labels have another form, or do not name every output exactly once.
    """
    names = _by_index(labels) if isinstance(labels, Mapping) else _in_order(labels)
    if len(names) != outputs:
        raise _refusal(f"the recipe has {len(names)} labels, and the module {outputs} outputs")
    beyond = sorted(names.keys() - range(outputs))
    if beyond:
        unnamed = sorted(range(outputs) - names.keys())
        raise _refusal(f"the labels name output {beyond[0]}, and not {unnamed[0]}: the outputs are 0 to {outputs - 1}")
    return [names[index] for index in range(outputs)]


def distinct(names: list[str]) -> list[str]:
    """Return the names, with the number of the output appended to names that several outputs share.

    Two ImageNet classes are called crane and two maillot. A reply is a mapping, in which one would replace the other.
    """
    counts = Counter(names)
    taken = {name for name in names if counts[name] == 1}
    return [name if counts[name] == 1 else _numbered(name, index, taken) for index, name in enumerate(names)]


def _numbered(name: str, index: int, taken: set[str]) -> str:
    numbered = f"{name} ({index})"
    while numbered in taken:
        numbered += f" ({index})"
    return numbered


def _in_order(labels: object) -> dict[int, str]:
    # A set has no order, a generator may come from a set, and a text is a sequence of letters.
    if not isinstance(labels, list | tuple):
        raise _refusal(f"the recipe's labels are of the type {type(labels).__name__}")
    return {index: _name(name, f"label {index}") for index, name in enumerate(labels)}


def _by_index(labels: Mapping[Any, Any]) -> dict[int, str]:
    """Distinguish index to name from name to index by the values: names may be digits, but indices are never names."""
    if all(_is_integer(value) for value in labels.values()):
        pairs = [(_index(value, "name", key), _name(key, "the name")) for key, value in labels.items()]
    else:
        pairs = [
            (_index(key, "index", value), _name(_last(value), f"the name of {key!r}")) for key, value in labels.items()
        ]
    twice = [index for index, count in Counter(index for index, _ in pairs).items() if count > 1]
    if twice:
        raise _refusal(f"the labels name output {twice[0]} more than once")
    return dict(pairs)


def _last(value: object) -> object:
    """Return the name in ``[id, name]``."""
    return value[-1] if isinstance(value, list | tuple) and len(value) == 2 else value


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _index(value: Any, kind: str, other: object) -> int:
    if _is_integer(value):
        index = int(value)
        if index >= 0:
            return index
    elif isinstance(value, str) and _INDEX.fullmatch(value):
        return int(value)
    raise _refusal(
        f"the labels map {value!r} to {other!r}, and {value!r} is not the number of an output"
        if kind == "index"
        else f"the labels map {other!r} to {value!r}, which is not the number of an output"
    )


def _name(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _refusal(f"{what} is {value!r}, not a text")
    if not value.strip() or not _is_unicode(value):
        raise _refusal(f"{what} is {value!r}, which cannot be encoded in a reply")
    return str(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(message: str) -> ExportError:
    return ExportError(message, tip=_TIP)
