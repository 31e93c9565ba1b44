"""Check a handler before it runs in a server: by its source, then by its import in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marsmith import child_processes
from marsmith.config.lint.findings import Finding, finding
from marsmith.errors import HandlerError
from marsmith.json_reader import read_json
from marsmith.runtime import handler_probe
from marsmith.runtime.check_rules import check_calls, read_by_frontend
from marsmith.runtime.entry_points import check_entry_point
from marsmith.runtime.import_statements import parse_python
from marsmith.runtime.imports import ImportProblem, fix_missing, follow_imports, resolve

# TorchServe's default time limit for the start of a model, in seconds.
IMPORT_TIMEOUT_S = 120.0
_IMPORT_RULES = frozenset({"relative-import", "name-clash", "unresolved-import", "not-python"})


def check_handler(handler: Path, *, function: str | None = None, timeout_s: float = IMPORT_TIMEOUT_S) -> list[Finding]:
    """Check a handler and its local imports, by their source and by importing the handler in a fresh process.

    Args:
        handler: path of the module.
        function: the entry point, if it is a function with another name than ``handle``.
        timeout_s: time limit of the import, in seconds.

    Returns:
        The findings, by file and line; empty if there are none.

    Raises:
        HandlerError: the file does not exist.
    """
    if not handler.is_file():
        raise HandlerError(f"no file {handler}", tip="give the path of a handler, or of a model archive")
    found = _by_text(handler, function)
    places = {(item.file.resolve(), item.line) for item in found if item.rule in _IMPORT_RULES}
    imported = _by_import(handler, function, timeout_s)
    # The entry point is reported once: by the source if possible, with the line; else by the import.
    shaped = any(item.rule in {"one-class", *_IMPORT_RULES} for item in found)
    found += [
        item
        for item in imported
        if (item.file.resolve(), item.line) not in places and not (item.rule == "one-class" and shaped)
    ]
    return in_order(found)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by file, line and rule, and drop repeated ones."""
    return sorted(set(findings), key=lambda item: (str(item.file), item.line, item.rule))


def _by_text(handler: Path, function: str | None) -> list[Finding]:
    try:
        files, problems = follow_imports(handler)
        sources = [file for file in files if file.suffix == ".py"]
        trees = {file: parse_python(file) for file in sources}
        _, unresolved = resolve(sources)
    except HandlerError as error:
        return [_not_python(handler, error)]
    found = [_of_import(problem) for problem in [*problems, *unresolved]]
    found += check_entry_point(handler, trees[handler], function)
    for file, tree in trees.items():
        found += check_calls(file, tree)
    return found


def _of_import(problem: ImportProblem) -> Finding:
    return finding(problem.rule, problem.file, problem.line, problem.message, problem.fix)


def _not_python(handler: Path, error: HandlerError) -> Finding:
    """Convert ``path:line: reason`` into a finding."""
    place, _, reason = error.message.partition(": ")
    path, _, line = place.rpartition(":")
    file = Path(path) if line.isdigit() else handler
    return finding("not-python", file, int(line) if line.isdigit() else 1, reason, "fix the syntax of that line")


def _by_import(handler: Path, function: str | None, timeout_s: float) -> list[Finding]:
    # Bytecode is not cached, so that the check leaves no files beside the handler.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    own_folder = child_processes.own_temporary_folder(environment)
    with child_processes.temporary_folder("marsmith-check-") as folder, own_folder as environment:
        result = folder / "result.json"
        work = folder / "work"
        work.mkdir()
        command = [
            sys.executable,
            "-P",
            handler_probe.__file__,
            str(handler.parent.resolve()),
            handler.stem,
            str(result),
        ]
        try:
            done = child_processes.run(command, timeout_s, cwd=work, env=environment)
        except subprocess.TimeoutExpired:
            message = f"importing the handler did not end within {timeout_s:g} s"
            return [finding("import-fails", handler, 1, message, "load the model in initialize, not at import")]
        output = (done.stdout + done.stderr).decode(errors="replace")
        if not result.is_file():
            message = f"importing the handler ended its process with status {done.returncode}"
            return [finding("import-fails", handler, 1, message, "find the cause: python -X faulthandler", output)]
        outcome = read_json(result.read_text(encoding="utf-8"))
    return [*_judged(handler, function, outcome), *_printed(handler, output)]


def _judged(handler: Path, function: str | None, outcome: dict[str, Any]) -> list[Finding]:
    error = outcome["error"]
    if error:
        file = _as_given(handler, Path(error["file"])) if error["file"] else handler
        message = f"{error['type']}: {error['message']}"
        return [finding("import-fails", file, error["line"], message, _fix(error, handler), error["traceback"])]
    names = outcome["names"]
    if (function or "handle") in names or len(outcome["classes"]) == 1:
        return []
    listed = ", ".join(outcome["classes"]) or "none"
    message = f"TorchServe requires one class in the module and finds {len(outcome['classes'])}: {listed}"
    return [finding("one-class", handler, 1, message, "move all but the handler to modules beside it, and import them")]


def _fix(error: dict[str, Any], handler: Path) -> str:
    if error["missing"]:
        return fix_missing(error["missing"].partition(".")[0], handler)
    if error["type"] in {"ImportError", "ModuleNotFoundError"}:
        return "import a name that is there; TorchServe would say \"No module named 'ts.torch_handler....'\" instead"
    return "fix that line; a module should only define things when it is imported"


def _printed(handler: Path, output: str) -> list[Finding]:
    lines = [line for line in output.splitlines() if read_by_frontend(line)]
    if not lines:
        return []
    message = f"prints at import what TorchServe's frontend takes for a message to itself: {lines[0]!r}"
    return [
        finding("frontend-print", handler, 1, message, "print something else, or nothing, while modules are imported")
    ]


def _as_given(handler: Path, file: Path) -> Path:
    """Return the path of a file beside the handler, relative in the same way as the handler's given path."""
    root = handler.parent.resolve()
    return handler.parent / file.relative_to(root) if file.is_relative_to(root) else file
