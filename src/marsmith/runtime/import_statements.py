"""Import statements of a Python file, from its source; the file is parsed and never run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.errors import HandlerError

_IMPORT_ERRORS = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
# Conditions on these depend on the machine, so the imports in their branches may be missing here.
_MACHINE_TESTS = frozenset({"version_info", "platform", "find_spec", "is_available"})


@dataclass(frozen=True)
class ImportStatement:
    """One import, anywhere in the file.

    Attributes:
        module: dotted name as written, without leading dots; empty for ``from . import x``.
        names: names after ``from module import``; empty for ``import module``.
        level: number of leading dots; 0 for an absolute import.
        file: the file.
        line: counted from 1.
        optional: whether the file works without it: a ``try`` catches the ImportError, or a condition on the machine
            guards it.
    """

    module: str
    names: tuple[str, ...]
    level: int
    file: Path
    line: int
    optional: bool

    @property
    def top(self) -> str:
        """First part of the dotted name, which is looked up on sys.path."""
        return self.module.partition(".")[0]


def parse_python(file: Path) -> ast.Module:
    """Parse a Python file, without running it.

    Raises:
        HandlerError: the file cannot be read, or is not valid Python for the Python that runs marsmith.
    """
    try:
        source = file.read_bytes()
    except OSError as error:
        raise HandlerError(f"{file}: {error.strerror}", tip="give the path of a Python file") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Warnings, such as invalid escapes, are not the subject here.
            return ast.parse(source, str(file))
    except SyntaxError as error:
        raise HandlerError(f"{file}:{error.lineno or 1}: not valid Python: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise HandlerError(f"{file}:1: not valid Python: {error}") from None


def read_imports(file: Path, tree: ast.Module | None = None) -> list[ImportStatement]:
    """List the imports that can run in a server, in the order of the source.

    Imports under ``if TYPE_CHECKING`` and ``if __name__ == "__main__"`` are left out, because no server runs them.
    ``importlib.import_module("name")`` and ``__import__("name")`` count if the name is a literal.

    Raises:
        HandlerError: the file cannot be read, or is not valid Python.
    """
    reader = _Reader(file)
    reader.visit(tree or parse_python(file))
    return reader.found


def lazy_imports(file: Path) -> list[ImportStatement]:
    """List what a module imports when a name of it is first used (PEP 562): what it imports for type checkers.

    Empty if the module has no ``__getattr__``: then nothing imports these while a server runs.

    Raises:
        HandlerError: the file cannot be read, or is not valid Python.
    """
    body = parse_python(file).body
    if not any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in body):
        return []
    reader = _Reader(file)
    for node in body:
        if isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                reader.visit(statement)
    return reader.found


class _Reader(ast.NodeVisitor):
    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: list[ImportStatement] = []
        self.optional = False

    def _add(self, node: ast.stmt | ast.expr, module: str, names: tuple[str, ...] = (), level: int = 0) -> None:
        self.found.append(ImportStatement(module, names, level, self.file, node.lineno, self.optional))

    def _visit_all(self, nodes: Iterable[ast.AST], *, optional: bool) -> None:
        outer = self.optional
        self.optional = outer or optional
        for node in nodes:
            self.visit(node)
        self.optional = outer

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._add(node, node.module or "", tuple(alias.name for alias in node.names), node.level)

    def visit_Call(self, node: ast.Call) -> None:
        argument = node.args[0] if node.args else None
        if (
            _last_name(node.func) in {"import_module", "__import__"}
            and isinstance(argument, ast.Constant)
            and isinstance(argument.value, str)
            and not argument.value.startswith(".")
        ):
            self._add(node, argument.value)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        optional = any(_last_name(part) in _MACHINE_TESTS for part in ast.walk(node.test))
        negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        guard = node.test.operand if isinstance(node.test, ast.UnaryOp) and negated else node.test
        never = _never_true_in_a_server(guard)
        self.visit(node.test)
        if not never or negated:
            self._visit_all(node.body, optional=optional)
        if not (never and negated):
            self._visit_all(node.orelse, optional=optional)

    def visit_Try(self, node: ast.Try) -> None:
        optional = any(_catches_import_error(handler.type) for handler in node.handlers)
        self._visit_all([*node.body, *node.handlers, *node.orelse], optional=optional)
        self._visit_all(node.finalbody, optional=False)

    def visit_TryStar(self, node: Any) -> None:  # ast.TryStar is new in Python 3.11; its fields are those of ast.Try.
        self.visit_Try(node)

    def visit_With(self, node: ast.With) -> None:
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        suppressed = [argument for call in calls if _last_name(call.func) == "suppress" for argument in call.args]
        self._visit_all(node.items, optional=False)
        self._visit_all(node.body, optional=any(_catches_import_error(argument) for argument in suppressed))


def _last_name(node: ast.AST) -> str:
    """Return ``c`` for ``a.b.c`` and for ``c``, else an empty text."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _never_true_in_a_server(test: ast.expr) -> bool:
    if _last_name(test) == "TYPE_CHECKING":
        return True
    # A server imports the handler, so its __name__ is never "__main__".
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Eq)
        and {ast.unparse(test.left), ast.unparse(test.comparators[0])} == {"__name__", "'__main__'"}
    )


def _catches_import_error(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(_last_name(kind) in _IMPORT_ERRORS for kind in kinds)
