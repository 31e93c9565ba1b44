"""Files in an unpacked archive that are not members, and could run or be loaded instead of a member.

The worker's working folder is the unpacked archive, and Python looks for modules there first. A handler may write data
there (a log, a cache). A file that Python or a handler would load must not be added.
"""

from __future__ import annotations

import marshal
import os
import re
import sys
from collections.abc import Collection
from importlib.machinery import all_suffixes
from importlib.util import MAGIC_NUMBER, cache_from_source, source_from_cache
from pathlib import Path, PurePosixPath
from types import CodeType

RESERVED = "MAR-INF"
# Handlers read these if they are there.
READ_UNASKED = frozenset({"index_to_name.json", "vocab.txt", "source_vocab.pt"})
# Suffixes of files that Python imports or links, or that change where it imports from; .zip counts only on its path.
_CODE = (*all_suffixes(), ".pyd", ".dll", ".dylib", ".pth", ".egg", ".egg-link")
_LIBRARY = re.compile(r".*\.so(\.\d+)*")
_METADATA = (".dist-info", ".egg-info", ".egg")
_BYTECODE = ".pyc"
_PYC_HEADER_BYTES = 16
# Attributes in which code objects that compare equal may differ, with an effect on the interpreter.
_CODE_FACTS = ("co_stacksize", "co_qualname", "co_varnames", "co_cellvars", "co_freevars", "co_exceptiontable")


def harmful_additions(
    folder: Path, listed: Collection[str], *, read: Collection[str] = (), may_have_more: bool = False
) -> list[str]:
    """Return the sorted names of files and links that are not listed and could run or be loaded.

    Bytecode that this Python made of a listed source does not count: without marsmith a worker writes it.

    Args:
        folder: where TorchServe has unpacked the archive.
        listed: names of the members.
        read: further names that the handler reads if they are there.
        may_have_more: packages were installed into the folder, so only files that replace a member count.
    """
    names = [name for name in _added(folder, listed) if not _is_own_bytecode(folder, name, listed)]
    if may_have_more:
        modules = {_module(name) for name in listed if name.endswith(".py")}
        return [name for name in names if _is_reserved(name) or _takes_a_place(name, modules)]
    return [name for name in names if name in READ_UNASKED or name in read or _could_run(folder, name)]


def _added(folder: Path, listed: Collection[str]) -> list[str]:
    """Return the unlisted files, and the folders with unknown content: links, and folders that cannot be read."""
    found: list[Path] = []
    unreadable: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=unreadable.append):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [Path(place) / name for name in (*files, *links)]
    found += [Path(error.filename) for error in unreadable]
    return sorted({path.relative_to(folder).as_posix() for path in found} - set(listed))


def _could_run(folder: Path, name: str) -> bool:
    path = PurePosixPath(name)
    return (
        _is_reserved(name)
        or name.endswith(_CODE)
        or _LIBRARY.fullmatch(path.name) is not None
        or any(part.endswith(_METADATA) for part in path.parts)
        or (folder / name).is_dir()
        or any((folder / name) == Path(entry).absolute() for entry in sys.path if entry)
    )


def _is_reserved(name: str) -> bool:
    return PurePosixPath(name).parts[0] == RESERVED


def _takes_a_place(name: str, modules: Collection[str]) -> bool:
    return name.endswith(_CODE) and _module(name) in modules


def _module(name: str) -> str:
    """Return the name of the module that a file would be: ``a/b`` for a/b.py, a/b.so and a/b/__init__.py."""
    path = PurePosixPath(name)
    if path.parent.name == "__pycache__":
        path = path.parent.parent / path.name
    module = path.with_name(path.name.partition(".")[0])
    return (module.parent if module.name == "__init__" else module).as_posix()


def _is_own_bytecode(folder: Path, name: str, listed: Collection[str]) -> bool:
    """Whether a file is what this Python writes beside a listed source that it imports."""
    if not name.endswith(_BYTECODE) or not (folder / name).is_file():
        return False
    try:
        source = Path(source_from_cache(str(folder / name)))
    except ValueError:
        return False
    if source.relative_to(folder).as_posix() not in listed or cache_from_source(str(source)) != str(folder / name):
        return False
    try:
        bytecode = (folder / name).read_bytes()
        made = compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
        # Python loads bytecode in this folder without further checks.
        found = marshal.loads(bytecode[_PYC_HEADER_BYTES:])  # noqa: S302
        return bytecode[:4] == MAGIC_NUMBER and _same_code(found, made)
    except (EOFError, ValueError, TypeError, SyntaxError):
        return False


def _same_code(one: object, other: object) -> bool:
    if not isinstance(one, CodeType) or not isinstance(other, CodeType) or one != other:
        return False
    if any(getattr(one, fact) != getattr(other, fact) for fact in _CODE_FACTS):
        return False
    inner = [[each for each in code.co_consts if isinstance(each, CodeType)] for code in (one, other)]
    return all(_same_code(*pair) for pair in zip(*inner, strict=True))
