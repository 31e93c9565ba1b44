"""Files and distributions that a handler needs, determined from its imports without running it.

TorchServe puts the folder of the unpacked archive on sys.path and imports the handler by its base name. A module beside
the handler is thus found by its base name, and a package by the name of its folder. Relative imports between modules of
the flat root do not work.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from marsmith.archive.environment import normalise
from marsmith.errors import HandlerError
from marsmith.packages import Providers, install_tip, lies_in_project, module_origin
from marsmith.runtime.import_statements import ImportStatement, lazy_imports, parse_python, read_imports
from marsmith.runtime.library import PACKAGE, new_import

# Modules that a worker imports before the handler. A local file with such a name is ignored (the module is loaded
# already) or breaks the worker (the file comes first on sys.path).
_TORCHSERVE_NAMES = frozenset(
    {"functorch", "numpy", "packaging", "psutil", "torch", "torchgen", "tqdm", "ts", "typing_extensions", "yaml"}
)


@dataclass(frozen=True)
class ImportProblem:
    """An import that would fail in a worker, or import another module than intended.

    Attributes:
        rule: ``relative-import``, ``name-clash`` or ``unresolved-import``.
        file: the file.
        line: counted from 1.
        message: what is wrong.
        fix: what to do.
    """

    rule: str
    file: Path
    line: int
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def local_imports(entry: Path, also: Sequence[Path] = ()) -> list[Path]:
    """Return the files beside ``entry`` that it imports, directly or through one another, sorted, without ``entry``.

    Modules are files beside the entry point, and packages are folders beside it. Of a package only the files that are
    imported count. Imports inside functions and in a ``try`` count; those under ``if TYPE_CHECKING`` do not.

    Args:
        entry: the file to start with.
        also: further folders to search, after the entry's own.

    Raises:
        HandlerError: a file cannot be read or parsed, a module of the flat root is imported relatively, or a local file
            has the name of a module of the standard library or of the worker. The message names every such place.
    """
    files, problems = follow_imports(entry, also)
    _raise_all(problems)
    return [file for file in files if file != entry]


def follow_imports(entry: Path, also: Sequence[Path] = ()) -> tuple[list[Path], list[ImportProblem]]:
    """Return ``entry`` with the local files that it imports, directly or indirectly, sorted, and the problems.

    Raises:
        HandlerError: a file cannot be read or parsed.
    """
    roots = (entry.parent, *also)
    reached = {entry}
    problems = []
    if is_reserved(entry.stem):
        problems.append(_clash(entry, 1, entry.stem, entry))
    waiting = deque([entry])
    while waiting:
        file = waiting.popleft()
        for statement in read_imports(file) if file.suffix == ".py" else []:
            problem = _misplaced(_root_of(file, roots), statement)
            if problem:
                problems.append(problem)
                continue
            new = [target for target in _local_targets(roots, statement) if target not in reached]
            reached.update(new)
            waiting.extend(new)
    return sorted(reached), problems


def third_party(files: Iterable[Path]) -> list[str]:
    """Return the top-level names that the files import and that are not local or in the standard library, sorted.

    A name is local if it is a file or folder beside the files, as in the flat root of an archive.

    Raises:
        HandlerError: a file cannot be read or parsed.
    """
    return sorted({statement.top for statement in foreign_imports(list(files))})


def distributions(files: Iterable[Path], *, allow_missing: bool = False) -> list[str]:
    """Return the normalised names (PEP 503) of the installed distributions that the files import, sorted.

    Optional imports (``try: ... except ImportError``) count if they are installed.

    Args:
        files: the entry point and its local imports.
        allow_missing: skip distributions that are not installed, instead of raising.

    Raises:
        HandlerError: a required import belongs to no installed distribution. The message names every such place.
    """
    names, problems = resolve(files)
    if not allow_missing:
        _raise_all(problems)
    return names


def resolve(files: Iterable[Path]) -> tuple[list[str], list[ImportProblem]]:
    """Return the distributions that the files import, and the imports that no installed distribution provides.

    Raises:
        HandlerError: a file cannot be read or parsed.
    """
    names: set[str] = set()
    problems: dict[tuple[Path, str], ImportProblem] = {}
    for statement, found in provided(foreign_imports(list(files))):
        names |= found
        if not found and not statement.optional:
            problems.setdefault((statement.file, statement.top), _unresolved(statement))
    return sorted(map(normalise, names)), list(problems.values())


def check_former_imports(files: Iterable[Path], given: Collection[str]) -> None:
    """Refuse imports by the flat names that the modules of ``marsmith_handler`` had, if nothing has such a name.

    Args:
        files: Python files; one that is not valid Python is left to others.
        given: top-level names that an archive brings.

    Raises:
        HandlerError: with every such import, and what to write in its place.
    """
    found = []
    for file in files:
        with suppress(HandlerError):
            found += [one for one in read_imports(file) if new_import(one) and not one.optional]
    absent = [one for one in found if one.top not in given and not _module_file(one.file.parent, one.top)]
    _raise_all([_unresolved(one) for one in absent if module_origin(one.top) is None])


def provided(statements: Iterable[ImportStatement]) -> Iterator[tuple[ImportStatement, set[str]]]:
    """Yield each import with the installed distributions that provide its names; empty if there are none."""
    providers = Providers.installed()
    for statement in statements:
        yield statement, {name for dotted in _dotted_names(statement) for name in providers.of(dotted)}


def is_reserved(name: str) -> bool:
    """Return whether a local module of this name would clash with the standard library or with TorchServe's worker."""
    return name in sys.stdlib_module_names or name in _TORCHSERVE_NAMES


def _raise_all(problems: list[ImportProblem]) -> None:
    if problems:
        fixes = dict.fromkeys(problem.fix for problem in problems)
        raise HandlerError("\n".join(map(str, problems)), tip="; ".join(fixes))


def _misplaced(root: Path, statement: ImportStatement) -> ImportProblem | None:
    """Return the problem with the place that an import refers to, or None."""
    file, line = statement.file, statement.line
    if statement.level:
        depth = len(file.parent.relative_to(root).parts)
        if statement.level <= depth:
            return None
        written = "." * statement.level + statement.module
        absolute = f"from {statement.module} import" if statement.module else "import"
        message = f"relative import of {written!r}: TorchServe imports handlers by base name, so there is no package"
        return ImportProblem("relative-import", file, line, message, f"write `{absolute} {', '.join(statement.names)}`")
    local = _module_file(root, statement.top)
    if local and is_reserved(statement.top):
        return _clash(file, line, statement.top, local)
    return None


def _clash(file: Path, line: int, name: str, local: Path) -> ImportProblem:
    owner = "the standard library" if name in sys.stdlib_module_names else "what TorchServe's worker imports"
    message = f"the local module {name!r} ({local}) has the name of a module of {owner}"
    return ImportProblem("name-clash", file, line, message, f"rename {local}")


def _unresolved(statement: ImportStatement) -> ImportProblem:
    name = statement.top
    now = new_import(statement)
    if now:
        message = f"the module {name!r} is not beside the handler: it is part of the package {PACKAGE} now"
        return ImportProblem("unresolved-import", statement.file, statement.line, message, f"write `{now}`")
    origin = module_origin(name)
    if origin:
        message = f"the module {name!r} ({origin}) belongs to no installed distribution, so no server can be given it"
    else:
        message = f"the module {name!r} is neither beside the handler nor installed"
    fix = fix_missing(name, statement.file, installed=origin is not None)
    return ImportProblem("unresolved-import", statement.file, statement.line, message, fix)


def fix_missing(name: str, handler: Path, *, installed: bool = False) -> str:
    """Return what to do about a module that an archive would lack.

    Args:
        name: top-level name of the module.
        handler: the file that imports it.
        installed: whether this Python can import it although no distribution contains it.
    """
    if name == "marsmith":
        return "a server need not have marsmith: move what the handler takes of it to a module beside the handler"
    elsewhere = lies_in_project(name, handler)
    if elsewhere:
        return f"an archive takes what lies beside the handler: move or copy {elsewhere} to {handler.parent}"
    if installed:
        return f"put {name}.py beside the handler, or make it a distribution and install that"
    return f"{install_tip(name)}, or put {name}.py beside the handler"


def foreign_imports(files: list[Path], roots: Sequence[Path] = ()) -> Iterator[ImportStatement]:
    """Yield the imports that are not relative, not local, and not from the standard library.

    Args:
        files: the entry point and its local imports.
        roots: folders of local modules; by default the highest of the files' own folders.
    """
    highest = _roots(files)
    given = {_top_name(_root_of(file, roots) if roots else highest(file), file) for file in files}
    for file in files:
        for statement in read_imports(file) if file.suffix == ".py" else []:
            if statement.level or statement.top in sys.stdlib_module_names or statement.top in given:
                continue
            if is_reserved(statement.top) or not _local_targets(roots or (highest(file),), statement):
                yield statement


def _root_of(file: Path, roots: Sequence[Path]) -> Path:
    """Return the first of the folders that contains a file."""
    return next((root for root in roots if file.is_relative_to(root)), file.parent)


def _local_targets(roots: Sequence[Path], statement: ImportStatement) -> list[Path]:
    """Return the result of ``_targets`` for the first folder with a result."""
    if statement.level:
        return _targets(_root_of(statement.file, roots), statement)
    # Only beside the entry point, where a file of any name comes first on sys.path.
    searched = roots[:1] if is_reserved(statement.top) else roots
    return next((targets for root in searched if (targets := _targets(root, statement))), [])


def _roots(files: list[Path]) -> Callable[[Path], Path]:
    """Return a function that gives the flat root of a file: the highest folder of the given files that contains it."""
    folders = {file.parent for file in files}
    return lambda file: next(folder for folder in [*reversed(file.parents)] if folder in folders)


def _top_name(root: Path, file: Path) -> str:
    return file.relative_to(root).parts[0].partition(".")[0]


def _dotted_names(statement: ImportStatement) -> list[str]:
    """Return the possible targets of an import: ``from a import b`` is an attribute of ``a`` or the module ``a.b``."""
    return [f"{statement.module}.{name}" for name in statement.names if name != "*"] or [statement.module]


def _targets(root: Path, statement: ImportStatement, passed: tuple[Path, ...] = ()) -> list[Path]:
    """Return the files below ``root`` that an import runs, outermost package first; empty if it is not local.

    Args:
        root: the flat root.
        statement: the import.
        passed: packages that it comes from, which import it on first use.
    """
    base: tuple[str, ...] = ()
    if statement.level:
        package = statement.file.parent.relative_to(root).parts
        base = package[: len(package) - (statement.level - 1)]
    found: list[Path] = []
    folder = root
    for part in (*base, *filter(None, statement.module.split("."))):
        file = _module_file(folder, part)
        if file:
            found.append(file)
        if not (folder / part).is_dir() or (file and file.name != "__init__.py"):
            return found
        folder = folder / part
    names = _taken(statement, found)
    modules = [file for name in names if (file := _module_file(folder, name))]
    return [*found, *modules, *_used_first(root, found[-1:], names, passed)]


def _used_first(root: Path, package: list[Path], names: tuple[str, ...], passed: tuple[Path, ...]) -> list[Path]:
    """Return what the names run that a package imports on their first use; ``import package`` may use any of them."""
    lazy = [one for file in package if file not in passed for one in lazy_imports(file)]
    wanted = [one for one in lazy if not names or set(names).intersection(one.names)]
    return [file for one in wanted for file in _targets(root, one, (*passed, *package))]


def _taken(statement: ImportStatement, found: list[Path]) -> tuple[str, ...]:
    """Return the names that an import takes from a package; for ``*``, those in its ``__all__``."""
    if statement.names != ("*",) or not found:
        return statement.names
    for node in parse_python(found[-1]).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return tuple(str(item.value) for item in ast.walk(node.value) if isinstance(item, ast.Constant))
    return ()


def _module_file(folder: Path, name: str) -> Path | None:
    """Return the file that Python would run for ``name`` in ``folder``, in Python's order of precedence."""
    candidates = [folder / name / "__init__.py", *(folder / f"{name}{end}" for end in EXTENSION_SUFFIXES)]
    return next((file for file in [*candidates, folder / f"{name}.py"] if file.is_file()), None)
