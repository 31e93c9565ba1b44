"""What TorchServe will call in a handler file, found by reading the file; it is never run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from marsmith.errors import HandlerError
from marsmith.runtime.import_statements import parse_python

DEFAULT_FUNCTION = "handle"
_ANYTHING = "*"


def check_entry_point(file: Path, function: str | None = None) -> None:
    """Check that a worker will find its entry point: the function, or else exactly one class that can handle.

    Args:
        file: the handler.
        function: the part after ``:``; None: a function ``handle`` where there is one, else the class.

    Raises:
        HandlerError: no valid Python, a name that cannot be imported, no such function, no class or several, or a class
            that has and inherits no method ``handle``.
    """
    if "." in file.stem:
        raise HandlerError(
            f"{file}: TorchServe imports the handler by its name, where a dot means a package",
            tip="rename the file",
        )
    body = parse_python(file).body
    names = set(_bound_names(body))
    if function is not None:
        if not {function, _ANYTHING} & names:
            raise HandlerError(f"{file}: there is no function {function!r} in it", tip=_what_to_write(file, body))
    elif not {DEFAULT_FUNCTION, _ANYTHING} & names:
        _check_class(file, body)


def _check_class(file: Path, body: Sequence[ast.stmt]) -> None:
    classes = {node.name: node for node in _statements(body) if isinstance(node, ast.ClassDef)}
    if len(classes) != 1:
        found = f"{len(classes)} classes: {', '.join(classes)}" if classes else "no class and no function 'handle'"
        moved = "move other classes into a file of their own; those that are imported do not count"
        raise HandlerError(
            f"{file}: {found}; TorchServe wants exactly one class in the handler's file, or a function 'handle'",
            tip=moved if classes else _what_to_write(file, body),
        )
    node = next(iter(classes.values()))
    bases = [base for base in node.bases if not (isinstance(base, ast.Name) and base.id == "object")]
    if not bases and DEFAULT_FUNCTION not in set(_bound_names(node.body)):
        raise HandlerError(
            f"{file}: the class {node.name} has no method 'handle'", tip="def handle(self, data, context)"
        )


def _what_to_write(file: Path, body: Sequence[ast.stmt]) -> str:
    """Return a tip for a file without an entry point: a function that could be one is named."""
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef) and len(node.args.args) == 2]
    named = f"name the one that is there, {file.name}:{functions[0]}; or " if functions else ""
    classes = "a class with initialize(self, context) and handle(self, data, context)"
    return f"{named}write {classes}, or a function handle(data, context); what is imported does not count as a class"


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Give the statements of a module or class, those within if, try, with and loops included."""
    for node in body:
        yield node
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _bound_names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Give the names that exist once the statements have run; ``*`` for those of a star import."""
    for node in _statements(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
