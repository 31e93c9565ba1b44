"""Find the informative line in error messages of torch, OpenVINO, ONNX Runtime and Java.

The first line is often not informative: a TorchScript traceback has its cause at the end, and OpenVINO begins with
source locations.

The file is in ``handlers/``, because a worker's Python has no marsmith; ``marsmith/`` has a link to it.
"""

from __future__ import annotations

import re

MOST_CHARACTERS = 400

_INTERPRETER = "The following operation failed in the TorchScript interpreter."
_TRACEBACKS = (_INTERPRETER, "Traceback (most recent call last):", "Traceback of TorchScript")
_HERE = "<--- HERE"
# A line with such an end only announces the next one, such as OpenVINO's `Check 'x' failed at src/core.cpp:117:`.
_WRAPPER = re.compile(r"(?:Exception from .*|Check '.*' failed at .*|.* API failed with \w+|-- \S+ with a message):")
_NO_OPERATOR = "-- No conversion rule found for operations: "
# Start of the lines of Java's stack frames.
_CAUSE, _FRAME = "Caused by: ", "\tat "
_COMPILER = re.compile(r"\S+:\d+:\d+: (?:fatal )?error: .+")
_TYPED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Warning|Exit): ")


def useful_line(error: BaseException | str) -> str:
    """Return the informative line of an error's text; the name of its type if there is no text."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "" if isinstance(error, str) else type(error).__name__
    line = _chosen(lines)
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."


def typed_line(error: BaseException) -> str:
    """Return the same with the type of the error in front: the one in the line, if there is one."""
    line = useful_line(error)
    name = type(error).__name__
    return line.removeprefix("builtins.") if _TYPED.match(line) or line == name else f"{name}: {line}"


def _chosen(lines: list[str]) -> str:
    if any(sign in lines[0] for sign in _TRACEBACKS) and (end := _end_of_traceback(lines)):
        return end
    causes = [line for line in lines if line.startswith(_CAUSE)] if any(map(_is_java, lines)) else []
    said = next((line.strip() for line in lines if line.startswith(_NO_OPERATOR) or _COMPILER.search(line)), None)
    if causes or said:
        return causes[-1].removeprefix(_CAUSE) if causes else str(said).removeprefix("-- ")
    told = [line.strip() for line in lines if not _WRAPPER.fullmatch(line.strip())] or [lines[-1].strip()]
    # A headline, such as `Error(s) in loading state_dict for Net:`.
    return f"{told[0]} {told[1]}" if told[0].endswith(":") and len(told) > 1 else told[0]


def _is_java(line: str) -> bool:
    return line.startswith(_FRAME)


def _end_of_traceback(lines: list[str]) -> str | None:
    """Return the final exception of a traceback: the first line after its last frame that is not indented."""
    frames = [place for place, line in enumerate(lines) if line.endswith(_HERE) or line.startswith("  File ")]
    after = lines[frames[-1] + 1 :] if frames else lines[1:]
    return next((line for line in after if not line[0].isspace() and line not in _TRACEBACKS), None)
