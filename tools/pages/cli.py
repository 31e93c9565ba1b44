"""The page of the command line, from the parsers and the docstrings of the verbs."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap

from marsmith.cli import VERBS, verb_parser

HEAD = """# The command line

Written by `make pages` from the verbs' own `--help`. `marsmith VERB --help` prints the same text.

The project is the folder with `config/models`. marsmith looks for it from the working folder upwards;
`MARSMITH_PROJECT=FOLDER` names it. Results go to stdout. Progress and errors go to stderr; a line that begins with TIP
says what to type next.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed, or a check did not hold |
| 2 | wrong usage |
| 128 + n | ended by signal n: 130 after Ctrl-C, 143 after SIGTERM |
"""


def page() -> str:
    """Return the page: a table of the verbs, then a section for each."""
    rows = [f"| [`{verb}`](#marsmith-{verb}) | {text} |" for verb, text in VERBS.items()]
    return "\n".join([HEAD, "| verb | what it does |", "|---|---|", *rows, "", *map(_section, VERBS)])


def _section(verb: str) -> str:
    parser = verb_parser(verb)
    rows = [_row(parser, action) for action in parser._actions if "--help" not in action.option_strings]
    table = ["| argument | meaning |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([f"## marsmith {verb}", "", _prose(parser.description or ""), *table])


def _prose(docstring: str) -> str:
    """Return a docstring as Markdown: what is indented is commands."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if paragraph.startswith("    "):
            parts.append(
                f"<!-- not run: an example of the verb's help -->\n```bash\n{textwrap.dedent(paragraph)}\n```\n"
            )
        else:
            parts.append(paragraph + "\n")
    return "\n".join(parts)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    meaning = formatter._expand_help(action) if action.help else ""
    return f"| {_names(action)} | {meaning.replace('|', chr(92) + '|')}{_choices(action)} |"


def _names(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else _value(action)
    if not action.option_strings:
        return f"`{value}`".replace("|", "\\|")
    return ", ".join(f"`{flag}{' ' + value if value else ''}`" for flag in action.option_strings)


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return action.dest.upper()


def _choices(action: argparse.Action) -> str:
    if action.choices is None:
        return ""
    named = ", ".join(f"`{choice}`" for choice in action.choices)
    return f"{'; ' if action.help else ''}one of {named}"
