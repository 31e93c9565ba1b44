"""The pages of the documentation, taken apart: prose, links, headings, and blocks of code with what is done with them.

A fenced block names its language. An HTML comment before it says what the tests do with it:

- ``<!-- file: PATH -->``: it is the content of this file of the project; the blocks after it find it there.
- ``<!-- not run: REASON -->``: it is checked as far as text can be, and not run.
- ``<!-- output -->``: it is what the block before it prints, see ``matches``.
- none: a ``bash`` or ``python`` block is run, in the order of the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.projects import REPOSITORY

LANGUAGES = {"bash", "python", "pyi", "yaml", "text", "json", "ini", "dockerfile", "mermaid", "properties"}
_FENCE = re.compile(r"^( *)```(.*)$")
_COMMENT = re.compile(r"^\s*<!-- (?:(file|not run): (.+)|(output)) -->$")
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it is, its language and text, and what the comment before it says."""

    page: Path
    line: int
    language: str
    text: str
    file: str | None = None
    not_run: str | None = None
    is_output: bool = False

    def __str__(self) -> str:
        """Return page and line, as they name a test."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A page: the lines outside of fenced blocks with their numbers, and the blocks."""

    path: Path
    prose: tuple[tuple[int, str], ...]
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        """Return the path in the repository, as it names a test."""
        return str(self.path.relative_to(REPOSITORY))

    def links(self) -> Iterator[tuple[int, str]]:
        """Yield the target of each link with the line in which the link ends; its text may be broken over lines."""
        numbers = [number for number, _ in self.prose]
        text = _CODE.sub("`", "\n".join(line for _, line in self.prose))
        for link in _LINK.finditer(text):
            yield numbers[text.count("\n", 0, link.end())], link[1]

    def anchors(self) -> set[str]:
        """Return the anchors of the headings, as GitHub makes them."""
        headings = [line.lstrip("#").strip() for _, line in self.prose if re.match(r"#+ ", line)]
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def pages() -> tuple[Page, ...]:
    """Return every page: README files, the changelog, and all below docs/."""
    named = ["README.md", "CHANGELOG.md", "handlers/README.md", "embed/README.md", "benchmarks/README.md"]
    optional = [path for path in ("CONTRIBUTING.md", "SECURITY.md") if (REPOSITORY / path).exists()]
    found = [REPOSITORY / path for path in (*named, *optional)]
    return tuple(map(read_page, [*found, *sorted((REPOSITORY / "docs").rglob("*.md"))]))


def read_page(path: Path) -> Page:
    """Take one page apart.

    Raises:
        ValueError: a fenced block does not end.
    """
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    fence: tuple[int, str, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        mark = _FENCE.match(line)
        if mark and fence is None:
            fence, inside = (number, mark[1], mark[2].strip()), []
        elif mark and fence is not None:
            blocks.append(_block(path, fence, inside, prose))
            fence = None
        elif fence is not None:
            inside.append(line.removeprefix(fence[1]))
        else:
            prose.append((number, line))
    if fence is not None:
        raise ValueError(f"{path}:{fence[0]}: the block does not end")
    return Page(path, tuple(prose), tuple(blocks))


def _block(path: Path, fence: tuple[int, str, str], inside: list[str], prose: list[tuple[int, str]]) -> Block:
    number, _, language = fence
    before = next((_COMMENT.match(line) for place, line in reversed(prose) if place == number - 1), None)
    said = {before[1]: before[2]} if before and before[1] else {}
    text = "".join(f"{line}\n" for line in inside)
    is_output = before is not None and before[3] is not None
    return Block(path, number, language, text, said.get("file"), said.get("not run"), is_output)


# What differs from run to run and from machine to machine: decimals, numbers with a unit, process ids, digests.
_NUMBER = re.compile(
    r"\d[\d.,:]*(?= (?:bytes|members|s|ms|MB|GiB)\b)|\d+\.\d{2,}|(?<=pid )\d+|\b[0-9a-f]{64}\b|\d+:\d\d:\d\d"
)
_SPACE = re.compile(r"[ -]{2,}")
# Of the cat on the pages these two are nearly a tie: which comes first depends on the processor's number formats.
_NEARLY_A_TIE = re.compile("tiger cat|Egyptian cat")


def matches(shown: str, printed: str) -> bool:
    """Return whether a page shows what a command prints.

    Decimals, numbers with a unit, pids, digests, the width of columns and the order of two labels may differ. ``...``
    in a line stands for any text, and alone on a line for any number of lines.
    """
    pattern = "".join(_pattern(line) for line in _normal(shown))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _normal(printed))) is not None


def _pattern(line: str) -> str:
    return r"(?:.*\n)*?" if line == "..." else ".*?".join(map(re.escape, line.split("..."))) + r"\n"


def _normal(text: str) -> list[str]:
    lines = _NEARLY_A_TIE.sub("tiger or Egyptian cat", text.strip()).splitlines()
    return [_SPACE.sub(" ", _NUMBER.sub("N", line)).strip() for line in lines]


def commands(script: str) -> list[list[str]]:
    """Return the words of every command of a shell script, those of ``$(...)`` as commands of their own."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        found += [words for inner in _SUBSTITUTION.findall(line) for words in commands(inner)]
        found += list(_simple_commands(_SUBSTITUTION.sub("SUBSTITUTED", line)))
    return found


def _simple_commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif set(word) <= set("<>"):
            skip = True
        elif set(word) <= set("();|&"):
            yield from [words] if words else []
            words = []
        elif words or not re.match(r"\w+=", word):
            words.append(word)
