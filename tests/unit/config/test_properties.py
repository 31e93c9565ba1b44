"""Java properties: what java.util.Properties reads, and that what is printed is read back."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.config.properties import ENCODING, Entry, as_mapping, parse_properties, render_properties, replace_entries
from marsmith.config.server_keys import FRONTEND_KEYS, KNOWN_KEYS, PATH_KEYS, variable
from marsmith.errors import ConfigError
from marsmith.server.launch import torchserve_home

EXAMPLE = r"""# a comment
! another
   # one that is indented

plain=value
spaced = value with spaces and an end \

colon: value
white	value
joined=first,\
       second,\
       third
empty=
bare
a\ key\=with\:all=b=c:d
escapes=tab\there\u0020and\u00e9 \q\\
path=C:\\models\
"""

READ = {
    "plain": "value",
    "spaced": "value with spaces and an end ",
    "colon": "value",
    "white": "value",
    "joined": "first,second,third",
    "empty": "",
    "bare": "",
    "a key=with:all": "b=c:d",
    "escapes": "tab\there andé q\\",
    "path": "C:\\models",
}


def test_every_form_of_a_line_is_read_as_java_reads_it() -> None:
    assert as_mapping(parse_properties(EXAMPLE)) == READ


def test_an_entry_knows_the_line_on_which_it_begins() -> None:
    entries = parse_properties("# head\n\na=1\nb=2,\\\n  3\nc=4\r\nd=5")
    assert entries == [Entry("a", "1", 3), Entry("b", "2,3", 4), Entry("c", "4", 6), Entry("d", "5", 7)]


def test_of_two_entries_with_one_key_the_last_counts() -> None:
    assert as_mapping(parse_properties("a=1\na=2")) == {"a": "2"}


def test_a_comment_is_not_continued_by_a_backslash() -> None:
    assert as_mapping(parse_properties("# comment \\\na=1")) == {"a": "1"}


def test_every_broken_escape_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError) as error:
        parse_properties("a=\\u12\nb=1\nc=\\uzzzz")
    assert [problem.split(":")[0] for problem in error.value.problems] == ["line 1", "line 3"]


@settings(max_examples=200)
@given(st.dictionaries(st.text(), st.text()))
def test_what_is_printed_is_read_back(values: dict[str, str]) -> None:
    text = render_properties(values)
    assert text.isascii()
    assert as_mapping(parse_properties(text)) == values


@settings(max_examples=200)
@given(st.text(alphabet=" \t\f=:#!\\\nabu0159\r"))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        entries = parse_properties(text)
    except ConfigError:
        return
    assert as_mapping(parse_properties(render_properties(as_mapping(entries)))) == as_mapping(entries)


def test_every_known_key_is_in_the_installed_frontend() -> None:
    home = torchserve_home()
    assert home is not None
    with zipfile.ZipFile(home / "ts" / "frontend" / "model-server.jar") as jar:
        bytecode = jar.read("org/pytorch/serve/util/ConfigManager.class")
    assert {key for key in FRONTEND_KEYS if key.encode() not in bytecode} == set()
    assert {key for key in KNOWN_KEYS if (name := variable(key)) and name.encode() not in bytecode} == set()
    assert PATH_KEYS < KNOWN_KEYS


JAVA_PROGRAM = """
import java.util.*; import java.nio.file.*;
public class Read { public static void main(String[] a) throws Exception {
  Properties p = new Properties(); p.load(Files.newInputStream(Paths.get(a[0])));
  for (String k : new TreeSet<>(p.stringPropertyNames()))
    System.out.println(k.codePoints().boxed().toList() + "=" + p.getProperty(k).codePoints().boxed().toList());
} }
"""


def test_java_itself_reads_the_same(tmp_path: Path) -> None:
    javac = subprocess.run(["which", "javac"], capture_output=True, check=False)
    if javac.returncode:
        pytest.skip("no Java compiler here")
    (tmp_path / "Read.java").write_text(JAVA_PROGRAM)
    (tmp_path / "example").write_text(EXAMPLE + render_properties({"🐈 é": " \n:=#!\t😀"}), encoding=ENCODING)
    command = ["java", str(tmp_path / "Read.java"), str(tmp_path / "example")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mine = as_mapping(parse_properties((tmp_path / "example").read_text(ENCODING)))
    numbers = {key: f"{[ord(c) for c in key]}={[ord(c) for c in value]}" for key, value in mine.items()}
    assert sorted(printed.splitlines()) == sorted(numbers.values())


@given(st.text(alphabet="ab=:# !\t\f\r\n\\\x0b\x85é\u2028", max_size=40))
def test_a_text_in_which_nothing_is_replaced_stays_as_it_is(text: str) -> None:
    assert replace_entries(text, {}) == text


def test_only_the_lines_of_an_entry_are_replaced() -> None:
    text = "# a\r\n\rfirst=1,\\\r\n  2\r\n! b\nsecond : 2\n\n# c\nthird=3"
    changed = replace_entries(text, {3: {"first": "one"}, 6: {}, 9: {"third": "http://h:1 #x"}})
    assert changed == "# a\r\n\rfirst=one\r\n! b\n\n# c\nthird=http://h:1 #x\n"
