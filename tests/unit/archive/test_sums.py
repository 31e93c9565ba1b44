"""``MAR-INF/SHA256SUMS``: the same to marsmith and to sha256sum."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.archive.sums import parse_sums, render_sums
from marsmith.errors import FormatError

DIGEST = hashlib.sha256(b"").hexdigest()
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\"), min_size=1, max_size=30)
DIGESTS = st.binary(max_size=8).map(lambda content: hashlib.sha256(content).hexdigest())


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, DIGESTS, max_size=6))
def test_every_list_survives_printing_and_parsing(digests: dict[str, str]) -> None:
    text = render_sums(digests)
    assert parse_sums(text) == digests
    assert [line[66:] for line in text.split("\n")[:-1]] == sorted(digests)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_accepts_what_is_printed_and_prints_the_same(tmp_path: Path) -> None:
    contents = {"a.txt": b"1", "Z z/  two spaces": b"2", "é*.bin": bytes(1000), "-c": b""}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = render_sums({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    command = ["sha256sum", "--check", "--strict"]
    checked = subprocess.run(command, cwd=tmp_path, input=text.encode(), capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    printed = subprocess.run(["sha256sum", "--", *sorted(contents)], cwd=tmp_path, capture_output=True, check=True)
    assert printed.stdout.decode() == text


@pytest.mark.parametrize("name", ["", "a\\b", "a\nb", "a\rb", "a\0b", "\x7f"])
def test_a_name_that_sha256sum_would_escape_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        render_sums({name: DIGEST})


@pytest.mark.parametrize(
    "line",
    [
        f"{DIGEST} a\n",
        f"{DIGEST} *a\n",
        f"{DIGEST}   \n\n",
        f"{DIGEST.upper()}  a\n",
        f"{DIGEST[1:]}  a\n",
        f"\\{DIGEST}  a\\\\b\n",
        f"{DIGEST}  a\\b\n",
        f"{DIGEST}  a",
        f"{DIGEST}  a\r\n",
        f"{DIGEST}  a\n{DIGEST}  a\n",
        "\n",
    ],
)
def test_a_line_that_does_not_follow_the_format_is_refused(line: str) -> None:
    with pytest.raises(FormatError, match="line "):
        parse_sums(line)
