"""The page of the Python API, from the names that the packages offer and their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

WIDTH = 110
PACKAGES = ("archive", "config", "export", "build", "runtime", "client", "server", "deploy", "loadtest", "scoring")
HEAD = """# The Python API

Written by `make pages` from the docstrings. These are the names that the packages offer; anything else may change from
one release to the next. Importing `marsmith`, or one of its packages, imports no torch: a name is loaded when it is
first used. `marsmith` itself offers `Archive`, `AsyncClient`, `Client`, `Runner` and `MarsmithError`, which every
error of marsmith is: `message` says what is wrong, and `tip` says what to do next.
"""
_TITLE = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")


def page() -> str:
    """Return the page: a section for each package, and in it one for each name."""
    return "\n".join([HEAD, *map(_package, PACKAGES)])


def _package(name: str) -> str:
    package = import_module(f"marsmith.{name}")
    names = [_name(name, each, getattr(package, each)) for each in sorted(package.__all__)]
    return "\n".join([f"## marsmith.{name}", "", _markdown(inspect.getdoc(package) or ""), *names])


def _name(package: str, name: str, thing: Any) -> str:
    kind = "class" if inspect.isclass(thing) else "function"
    parts = [
        f"### {kind} {name}",
        "",
        "```pyi",
        f"from marsmith.{package} import {name}",
        "",
        _signature(name, thing),
        "```",
        "",
    ]
    parts.append(_markdown(inspect.getdoc(thing) or ""))
    if inspect.isclass(thing):
        parts += _members(thing)
    return "\n".join(parts)


def _members(owner: type) -> list[str]:
    """Return a table of the public methods and properties that marsmith's own classes define."""
    found: dict[str, str] = {}
    for base in inspect.getmro(owner):
        if not base.__module__.startswith("marsmith"):
            continue
        for name, member in vars(base).items():
            text = "" if name.startswith("_") or name in found else _member(name, member)
            if text:
                found[name] = text
    return ["| member | what it does |", "|---|---|", *found.values(), ""] if found else []


def _member(name: str, member: Any) -> str:
    function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    if isinstance(function, property):
        return f"| `{name}` | {_first(function.fget)} |"
    if not inspect.isfunction(function):
        return ""
    signature = " ".join(line.strip() for line in _signature(name, function).split("\n"))
    signature = signature.replace("( ", "(").replace(", )", ")")
    return f"| `{signature.replace('|', chr(92) + '|')}` | {_first(function)} |"


def _signature(name: str, thing: Any) -> str:
    """Return name and parameters; the name alone if the users of a class do not make its objects themselves."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    if any(each.startswith("_") for each in signature.parameters):
        return name
    if hasattr(thing, "model_fields"):
        return f"{name}({', '.join(signature.parameters)})"
    returned = "" if inspect.isclass(thing) else f" -> {_annotation(signature.return_annotation)}"
    parameters = list(_parameters(signature))
    line = f"{name}({', '.join(parameters)}){returned}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {each}," for each in parameters), f"){returned}"])


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    keywords = False
    for parameter in signature.parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            yield "*"
        keywords = keywords or parameter.kind in {parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL}
        stars = "*" * ((parameter.kind is parameter.VAR_POSITIONAL) + 2 * (parameter.kind is parameter.VAR_KEYWORD))
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        yield f"{stars}{parameter.name}: {_annotation(parameter.annotation)}{default}"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    """Return a default as it is written; ``...`` for what has no short form."""
    plain = (bool, int, float, str, tuple, type(None))
    return repr(value) if type(value) in plain and len(repr(value)) < 40 else "..."


def _first(function: Any) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(function) or "").replace("``", "`").split("\n\n")[0].split())


def _markdown(docstring: str) -> str:
    """Return a docstring of Google's style as Markdown: its sections become lists."""
    lines: list[str] = []
    inside = False
    for line in docstring.replace("``", "`").split("\n"):
        if _TITLE.match(line):
            inside = True
            lines += [f"**{line.removesuffix(':')}**", ""]
        elif inside and (item := re.match(r"    (\w[\w., *]*): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif inside and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        elif inside and line.startswith("    "):
            lines.append(line.strip())
        else:
            inside = inside and not line
            lines.append(line)
    return "\n".join(lines).strip() + "\n"
