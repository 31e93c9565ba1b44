"""Rules about single calls in a handler or its local imports, checked in their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from marsmith.config.lint.findings import Finding, finding

_FRONTEND_MARKS = ("[METRICS]", "[PID]")
_FRONTEND_END = "Torch worker started."
# Python workers log the bare message to stdout, so the frontend parses log lines like printed ones.
_LOGGING = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})
# Position and keyword of texts that TorchServe sends with their length in characters instead of bytes, or in an HTTP
# header.
_WIRE_TEXTS = {
    "set_response_status": (1, "phrase"),
    "set_response_content_type": (1, "value"),
    "set_response_header": (2, "value"),
    "set_all_response_status": (1, "phrase"),
}


def read_by_frontend(line: str) -> bool:
    """Return whether TorchServe's frontend parses a line of output as a message."""
    return line.removeprefix("INFO > ").startswith(_FRONTEND_MARKS) or line.endswith(_FRONTEND_END)


def check_calls(file: Path, tree: ast.Module) -> Iterator[Finding]:
    """Yield the findings about single calls, in the order of the source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "print" or name in _LOGGING or _is_write_to_stdout(node.func):
                yield from _check_output(file, node)
            elif ast.unparse(node.func) == "torch.load":
                yield from _check_load(file, node)
            elif name in _WIRE_TEXTS:
                yield from _check_wire_text(file, node, *_WIRE_TEXTS[name])


def _is_write_to_stdout(function: ast.expr) -> bool:
    return ast.unparse(function) in {"sys.stdout.write", "sys.stderr.write", "sys.stdout.writelines"}


def _check_output(file: Path, call: ast.Call) -> Iterator[Finding]:
    texts = [text for argument in call.args if (text := _text(argument))]
    lines = [line for text in texts for line in text.splitlines()]
    if any(map(read_by_frontend, lines)):
        message = f"prints a line that TorchServe's frontend parses as a message: {texts[0]!r}"
        fix = "use context.metrics for metrics, and start other lines differently"
        yield finding("frontend-print", file, call.lineno, message, fix)
    elif ast.unparse(call.func) == "print" and not any(keyword.arg == "file" for keyword in call.keywords):
        fix = "use logging, which can be switched off"
        yield finding("print", file, call.lineno, "prints to the model's log without time and level", fix)


def _check_load(file: Path, call: ast.Call) -> Iterator[Finding]:
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "weights_only"), None)
    if given is None or (isinstance(given, ast.Constant) and given.value is False):
        message = "torch.load without weights_only=True runs any code that the file holds"
        if given is None:
            message += "; it is the default only from torch 2.6 on"
        fix = "write torch.load(path, weights_only=True, map_location=...), or load a TorchScript file or safetensors"
        yield finding("unsafe-load", file, call.lineno, message, fix)


def _check_wire_text(file: Path, call: ast.Call, position: int, keyword: str) -> Iterator[Finding]:
    by_keyword = next((item.value for item in call.keywords if item.arg == keyword), None)
    argument = by_keyword or (call.args[position] if len(call.args) > position else None)
    text = _text(argument) if argument else ""
    if not text.isascii():
        fix = "use ASCII here, and put the text into the body"
        if "header" in ast.unparse(call.func):
            message = f"{text!r} is not ASCII, and other characters in HTTP headers are not reliable"
            yield finding("non-ascii-header", file, call.lineno, message, fix)
        else:
            message = f"{text!r} is not ASCII: the worker dies, because TorchServe sends its length in characters"
            yield finding("non-ascii-wire", file, call.lineno, message, fix)


def _text(node: ast.expr) -> str:
    """Return the text of a literal, of an f-string without its values, or an empty text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        # Values are replaced by a character, so that text after them does not count as the start of the line.
        return "".join(_text(part) if isinstance(part, ast.Constant) else "0" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        return _text(node.left)
    return ""
