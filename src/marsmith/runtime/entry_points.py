"""The entry point of a handler, determined from its source: what TorchServe will call, and whether it can.

TorchServe uses the function that the manifest names (by default ``handle``), if the module has it. Otherwise it uses
the module's only class and calls its ``initialize(context)`` and ``handle(data, context)``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marsmith.config.lint.findings import Finding, finding
from marsmith.errors import HandlerError
from marsmith.runtime.import_statements import parse_python

DEFAULT_FUNCTION = "handle"
# The name that stands for a star import.
_ANYTHING = "*"
_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
# Calls that create a class, like a `class` statement.
_CLASS_MAKERS = frozenset({"NamedTuple", "TypedDict", "namedtuple", "make_dataclass"})
# From package to package, after an imported class.
_MOST_STEPS = 8


@dataclass(frozen=True)
class _Inherited:
    """A method of a class or its bases: its node, or None. ``unknown``: a base class cannot be inspected."""

    node: _FunctionNode | None
    known: bool

    @property
    def is_missing(self) -> bool:
        """Whether there is certainly no such method."""
        return self.known and self.node is None


def check_entry_point(file: Path, tree: ast.Module, function: str | None) -> list[Finding]:
    """Check the entry point of a module.

    Args:
        file: the handler.
        tree: the parsed source.
        function: the function that the manifest names; None if it names only the module.
    """
    named = function or DEFAULT_FUNCTION
    definition = _top_level_function(tree, named)
    if definition:
        return _check_function(file, definition)
    if {named, _ANYTHING} & _assigned_names(tree):
        return []
    classes = _classes(tree)
    found = [] if len(classes) == 1 else [_class_count(file, classes, function)]
    owners = [node for node in classes.values() if isinstance(node, ast.ClassDef)]
    # Of several classes, those with a handle are probably handlers, so their other faults are reported as well.
    root = file.parent
    meant = owners if len(classes) == 1 else [owner for owner in owners if _method(root, tree, owner, "handle").node]
    if len(classes) == 1 and not owners:
        (node,) = classes.values()
        return [
            finding("no-handle", file, node.lineno, "the module's only class has no methods", "write a handler class")
        ]
    return found + [item for owner in dict.fromkeys(meant) for item in _check_class(file, tree, owner)]


def require_entry_point(file: Path, function: str | None = None) -> None:
    """Check that a worker will find an entry point: the function, or exactly one class with a method ``handle``.

    Args:
        file: the handler.
        function: part after ``:``; None: a function ``handle`` if there is one, else the class.

    Raises:
        HandlerError: the file is not valid Python, its name cannot be imported, the function or class is missing, there
            are several classes, or the class neither has nor inherits a method ``handle``.
    """
    if "." in file.stem:
        raise HandlerError(
            f"{file}: TorchServe imports the handler by its name, and a dot in a name means a package",
            tip="rename the file",
        )
    tree = parse_python(file)
    named = function or DEFAULT_FUNCTION
    if _top_level_function(tree, named) or {named, _ANYTHING} & _assigned_names(tree):
        return
    if function is not None:
        raise HandlerError(f"{file}: it has no function {function!r}", tip=_what_to_write(file, tree))
    classes = _classes(tree)
    if len(classes) != 1:
        found = f"{len(classes)} classes: {', '.join(classes)}" if classes else "no class and no function 'handle'"
        moved = "move other classes into a file of their own; those that are imported do not count"
        raise HandlerError(
            f"{file}: {found}; TorchServe requires exactly one class in the handler's file, or a function 'handle'",
            tip=moved if classes else _what_to_write(file, tree),
        )
    ((name, node),) = classes.items()
    if not isinstance(node, ast.ClassDef) or _method(file.parent, tree, node, DEFAULT_FUNCTION).is_missing:
        raise HandlerError(f"{file}: the class {name} has no method 'handle'", tip="def handle(self, data, context)")


def _what_to_write(file: Path, tree: ast.Module) -> str:
    """Return a tip for a file without an entry point. It names a function that could be one."""
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and len(node.args.args) == 2]
    named = f"name the existing one, {file.name}:{functions[0]}; or " if functions else ""
    classes = "a class with initialize(self, context) and handle(self, data, context)"
    return f"{named}write {classes}, or a function handle(data, context); imported classes do not count"


def entry_line(file: Path, function: str | None) -> int:
    """Return the line of the entry point's definition; 1 if it cannot be determined."""
    try:
        tree = parse_python(file)
    except HandlerError:
        return 1
    definition = _top_level_function(tree, function or DEFAULT_FUNCTION)
    classes = list(_classes(tree).values())
    node = definition or (classes[0] if len(classes) == 1 else None)
    return node.lineno if node else 1


def _class_count(file: Path, classes: dict[str, ast.stmt], function: str | None) -> Finding:
    if not classes:
        missing = f"no function {function!r} and " if function else ""
        message = f"{missing}no class in the module: TorchServe has nothing to call"
        fix = "write a class with initialize(self, context) and handle(self, data, context), or handle(data, context)"
        return finding("one-class", file, 1, message, fix)
    lines = ", ".join(f"{name} (line {node.lineno})" for name, node in classes.items())
    message = f"{len(classes)} classes in the module, but TorchServe requires one: {lines}"
    fix = "move all but the handler to modules beside it, and import them"
    return finding("one-class", file, list(classes.values())[1].lineno, message, fix)


def _check_function(file: Path, function: _FunctionNode) -> list[Finding]:
    found = _check_handle(file, function, bound=0)
    if not found and not _mentions_in_a_test(function, function.args.args[0].arg):
        message = f"{function.name} is called with data None when the model is loaded, and does not check for this"
        fix = f"begin it with `if {function.args.args[0].arg} is None: return None`, and load the model there"
        found.append(finding("load-call", file, function.lineno, message, fix))
    return found


def _check_class(file: Path, tree: ast.Module, owner: ast.ClassDef) -> list[Finding]:
    found = []
    handle = _method(file.parent, tree, owner, "handle")
    initialize = _method(file.parent, tree, owner, "initialize")
    if handle.is_missing:
        fix = "write `def handle(self, data, context)`; it returns a list with one reply a request"
        found.append(finding("no-handle", file, owner.lineno, f"the class {owner.name} has no handle", fix))
    if initialize.is_missing:
        fix = "write `def initialize(self, context)`, and load the model there"
        message = f"the class {owner.name} has no initialize, which TorchServe calls at load"
        found.append(finding("no-initialize", file, owner.lineno, message, fix))
    if handle.node in owner.body and handle.node:
        found += _check_handle(file, handle.node, bound=1)
    if initialize.node in owner.body and initialize.node and not _takes(initialize.node, 2):
        message, fix = "initialize must take one argument: context", "write `def initialize(self, context)`"
        found.append(finding("signature", file, initialize.node.lineno, message, fix))
    return found


def _check_handle(file: Path, function: _FunctionNode, *, bound: int) -> list[Finding]:
    line, name = function.lineno, function.name
    static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list)
    if not _takes(function, 2 + (0 if static else bound)):
        arguments = "(self, data, context)" if bound else "(data, context)"
        message = f"{name} must take two arguments: data and context"
        return [finding("signature", file, line, message, f"write `def {name}{arguments}`")]
    if isinstance(function, ast.AsyncFunctionDef):
        message = f"{name} is async, which works only with `asyncCommunication: true` in the model config"
        return [finding("async-handle", file, line, message, "set that key, or write a plain `def`")]
    return _check_returns(file, function, may_return_none=not bound)


def _check_returns(file: Path, function: ast.FunctionDef, *, may_return_none: bool) -> list[Finding]:
    fix = "return a list with one reply a request, in the order of data"
    own = list(_own_nodes(function))
    for node in own:
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return [
                finding(
                    "returns-no-list", file, node.lineno, f"{function.name} yields, so it does not return a list", fix
                )
            ]
    returns = [node for node in own if isinstance(node, ast.Return)]
    if not returns and not any(isinstance(node, ast.Raise) for node in own):
        message = f"{function.name} returns nothing"
        return [finding("returns-no-list", file, function.lineno, message, fix)]
    wrong = [(node, kind) for node in returns if (kind := _no_list(node.value))]
    return [
        finding(
            "returns-no-list", file, node.lineno, f"{function.name} returns {kind}, but TorchServe requires a list", fix
        )
        for node, kind in wrong
        if not (may_return_none and kind == "None")
    ]


def _no_list(value: ast.expr | None) -> str | None:
    """Return the kind of a returned value if the source shows that it is not a list."""
    if value is None:
        return "None"
    if isinstance(value, ast.Constant):
        return "None" if value.value is None else f"a {type(value.value).__name__}"
    kinds = {ast.Dict: "a dict", ast.DictComp: "a dict", ast.Tuple: "a tuple", ast.Set: "a set", ast.SetComp: "a set"}
    texts = {ast.JoinedStr: "a str", ast.GeneratorExp: "a generator"}
    return {**kinds, **texts}.get(type(value))


def _takes(function: _FunctionNode, count: int) -> bool:
    """Return whether a function can be called with ``count`` positional arguments."""
    arguments = function.args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    needs_keyword = any(default is None for default in arguments.kw_defaults)
    enough = positional >= count or arguments.vararg is not None
    return positional - len(arguments.defaults) <= count and enough and not needs_keyword


def _mentions_in_a_test(function: _FunctionNode, name: str) -> bool:
    tests = [node.test for node in ast.walk(function) if isinstance(node, ast.If | ast.IfExp | ast.While)]
    others = [node for node in ast.walk(function) if isinstance(node, ast.BoolOp | ast.Compare | ast.Try)]
    parts = [part for node in [*tests, *others] for part in ast.walk(node)]
    return any(isinstance(part, ast.Name) and part.id == name for part in parts)


def _own_nodes(function: _FunctionNode) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of nested functions and classes."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run at import, including those in ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
            blocks += [handler.body for handler in getattr(node, "handlers", [])]
            for block in blocks:
                yield from _module_level(block)


def _top_level_function(tree: ast.Module, name: str) -> _FunctionNode | None:
    functions = (n for n in _module_level(tree.body) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return next((node for node in functions if node.name == name), None)


def _assigned_names(tree: ast.Module) -> set[str]:
    """Return the names that are bound at import, except by ``def`` and ``class``; ``*`` for a star import."""
    names = set()
    for node in _module_level(tree.body):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def _classes(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return the classes as TorchServe counts them: names at module level whose value is a class defined here."""
    found: dict[str, ast.stmt] = {}
    for node in _module_level(tree.body):
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and _makes_class(node.value, found):
            found.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    return found


def _makes_class(value: ast.expr, classes: dict[str, ast.stmt]) -> bool:
    if isinstance(value, ast.Name):
        return value.id in classes
    maker = value.func if isinstance(value, ast.Call) else None
    name = maker.attr if isinstance(maker, ast.Attribute) else getattr(maker, "id", "")
    return name in _CLASS_MAKERS


def _method(root: Path, tree: ast.Module, owner: ast.ClassDef, name: str) -> _Inherited:
    """Find a method in a class or its bases, as far as these lie in modules and packages beside the handler."""
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return _Inherited(node, known=True)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _Inherited(None, known=False)
    found = [_method_of_base(root, tree, base, name) for base in owner.bases]
    inherited = next((method for method in found if method.node), None)
    return inherited or _Inherited(None, known=all(method.known for method in found))


def _method_of_base(root: Path, tree: ast.Module, base: ast.expr, name: str) -> _Inherited:
    text = ast.unparse(base)
    if text in {"object", "ABC", "abc.ABC"}:
        return _Inherited(None, known=True)
    local = _classes(tree).get(text)
    if isinstance(local, ast.ClassDef):
        return _method(root, tree, local, name)
    found = _class_of(root, tree, text)
    return _method(root, *found, name) if found else _Inherited(None, known=False)


def _class_of(root: Path, tree: ast.Module, text: str) -> tuple[ast.Module, ast.ClassDef] | None:
    """Find an imported class by the text that names it, also if packages on the way only pass it on.

    Returns:
        The module with its definition, and that; None if it is out of sight.
    """
    for _ in range(_MOST_STEPS):
        module, text = _origin_of(tree, text)
        source = _source_of(root, module)
        if source is None:
            return None
        try:
            tree = parse_python(source)
        except HandlerError:
            return None
        owner = _classes(tree).get(text)
        if isinstance(owner, ast.ClassDef):
            return tree, owner
    return None


def _source_of(root: Path, module: str) -> Path | None:
    place = root.joinpath(*module.split(".")) if module else None
    files = [place / "__init__.py", place.with_suffix(".py")] if place else []
    return next((file for file in files if file.is_file()), None)


def _origin_of(tree: ast.Module, text: str) -> tuple[str, str]:
    """Return module and class of a base class written as ``Base`` or ``module.Base``."""
    head, _, tail = text.rpartition(".")
    for node in _module_level(tree.body):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == (head or text):
                    return (f"{node.module}.{alias.name}", tail) if head else (node.module or "", alias.name)
        if isinstance(node, ast.Import) and head:
            for alias in node.names:
                if (alias.asname or alias.name) == head:
                    return alias.name, tail
    return "", ""
