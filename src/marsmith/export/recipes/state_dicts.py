"""State dicts: prefixes of their names, and whether a module accepts them, as torch decides. Imports torch."""

from __future__ import annotations

import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from marsmith.names import nearest

StateDict = Mapping[str, Any]

# Prefixes that wrappers add to each name: DataParallel and AveragedModel, and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# Number of averaged states of an AveragedModel: an entry besides the module.
_COUNTER = "n_averaged"
_NAMES = re.compile(r'(Missing|Unexpected) key\(s\) in state_dict: (".*"). ?$')
_MOST_NAMES = 5
_MOST_LINES = 8


def without_prefix(state: StateDict, prefix: str) -> StateDict:
    """Return the entries whose names begin with ``prefix``, without it, and with torch's versions of the modules."""
    taken = OrderedDict((name[len(prefix) :], value) for name, value in state.items() if name.startswith(prefix))
    versions: Mapping[str, Any] | None = getattr(state, "_metadata", None)
    if versions is not None:
        kept = {f"{name}.": version for name, version in versions.items() if f"{name}.".startswith(prefix)}
        metadata = OrderedDict((name[len(prefix) :].removesuffix("."), version) for name, version in kept.items())
        taken._metadata = metadata  # type: ignore[attr-defined]  # as torch does
    return taken


def unwrapped(state: StateDict, wanted: Collection[str]) -> tuple[StateDict, str]:
    """Remove the prefixes of training wrappers; return the rest, and the removed prefixes.

    Args:
        state: the saved state dict.
        wanted: names in the module; if one of them occurs, no further prefix is removed.
    """
    stripped = ""
    while (prefix := _common_wrapper(state)) and not any(name in wanted for name in state):
        state = without_prefix(state, prefix)
        stripped += prefix
    return state, stripped


def problems(module: torch.nn.Module, state: StateDict) -> list[str]:
    """Load a state dict strictly, and return torch's messages; empty if it was loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.load_state_dict(state)
    except Exception as error:  # Modules may raise any exception when they load.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        messages = lines[1:] if lines[0].startswith("Error(s) in loading") else lines
        return _shortened([line.strip() for line in messages], module.state_dict().keys(), state.keys())
    return []


def advice(module: torch.nn.Module, state: StateDict) -> str:
    """Return what to try for a state dict that does not fit, such as a prefix that only one side has."""
    shapes = {name: getattr(value, "shape", None) for name, value in module.state_dict().items()}
    prefix = prefix_of(state, shapes)
    if prefix:
        return f"the file has {prefix!r} before the names: --strip-prefix {prefix}, or export.strip_prefix in the spec"
    prefix = prefix_of(shapes, state)
    if prefix and 2 * len(state) >= len(shapes):
        return f"the module has {prefix!r} before the names of the file: let build() return the module inside it"
    if shapes.keys() == state.keys():
        return "the names fit but the sizes do not: use those of the file in build(), such as the number of classes"
    return "is it the right architecture?"


def prefix_of(names: Collection[str], wanted: Collection[str]) -> str | None:
    """Return the prefix without which most of ``wanted`` would be among ``names``; None if there is none.

    It must precede at least half of ``wanted``, and match more names than no prefix.
    """
    found = Counter(
        name[: dot.end()] for name in names for dot in re.finditer(r"\.", name) if name[dot.end() :] in wanted
    )
    plain = sum(name in wanted for name in names)
    # Of two that match equally many names, the longer one: in "model.model.x" the shorter one gives names that do not
    # exist.
    prefix, count = max(found.items(), key=lambda item: (item[1], len(item[0])), default=("", 0))
    return prefix if count > plain and 2 * count >= len(wanted) else None


def _common_wrapper(state: StateDict) -> str | None:
    names = [name for name in state if name != _COUNTER]
    return next((one for one in _WRAPPERS if names and all(name.startswith(one) for name in names)), None)


def _shortened(lines: Sequence[str], wanted: Collection[str], given: Collection[str]) -> list[str]:
    """Shorten torch's message to the first names and lines, and add the nearest name of the file."""
    short = []
    for line in lines:
        listed = _NAMES.match(line)
        if listed is None:
            short.append(line)
            continue
        names = listed[2].strip('"').split('", "')
        left = [name for name in given if name not in wanted] if listed[1] == "Missing" else []
        shown = [_with_nearest(name, left) for name in names[:_MOST_NAMES]]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        short.append(f"{listed[1]} key(s) in state_dict: {', '.join(shown)}{more}")
    return short[:_MOST_LINES] + ([f"and {len(short) - _MOST_LINES} more"] if len(short) > _MOST_LINES else [])


def _with_nearest(name: str, left: Sequence[str]) -> str:
    near = nearest(name, left)
    return f'"{name}"' + (f' (the file has "{near}")' if near else "")
