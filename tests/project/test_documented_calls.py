"""The calls with curl that the documentation shows: each says what it sends, and who asks."""

from __future__ import annotations

import re
import shlex

import pytest

from support.projects import REPOSITORY

FORM_TYPE = "application/x-www-form-urlencoded"


def curl_lines() -> list[tuple[str, list[str]]]:
    """Return every curl call of the documentation: the page, and its words."""
    pages = [
        REPOSITORY / "README.md",
        REPOSITORY / "handlers" / "README.md",
        *sorted((REPOSITORY / "docs").rglob("*.md")),
    ]
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^curl .*$", text, re.MULTILINE):
            # Commands between the quotes of a shell are not words of their own here.
            words = shlex.split(re.sub(r"\$\([^)]*\)", "X", line.partition("   #")[0]).replace("'\"X\"'", "X"))
            # Envoy's admin socket is guarded by its mode, and the supervisor's listener says nothing of requests.
            if "--unix-socket" not in words and not any(":8083/" in word for word in words):
                found.append((page.name, words))
    return found


@pytest.mark.parametrize(("page", "words"), curl_lines(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_curl_of_the_documentation_says_what_it_sends_and_who_asks(page: str, words: list[str]) -> None:
    headers = [words[place + 1].lower() for place, word in enumerate(words) if word == "-H"]
    # The header may be in a variable, whose name then says so.
    assert any(header.startswith("authorization:") or header == "$token" for header in headers), page
    sends = [word for word in words if word in {"-d", "--data", "--data-ascii", "--data-raw", "--data-binary"}]
    types = [header.partition(":")[2].strip() for header in headers if header.startswith("content-type:")]
    assert not sends or (len(types) == 1 and types[0] != FORM_TYPE), f"{page}: {words}"
