"""The bounds of the YAML reader, and that it reads a model config as TorchServe does."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.bounded_yaml import MAX_ALIASES, MAX_CHARACTERS, MAX_DEPTH, MAX_NODES
from marsmith.errors import ConfigError, FormatError
from marsmith.strict_yaml import dump, line_of, load_mapping, load_model_config

# What SnakeYAML 2 of TorchServe 0.12.0 makes of a plain scalar, seen on its own jar.
SCALARS: list[tuple[str, Any]] = [
    ("010", 8),
    ("0010", 8),
    ("+010", 8),
    ("0_7", 7),
    ("08", "08"),
    ("09", "09"),
    ("0o17", "0o17"),
    ("0x1F", 31),
    ("-0x1f", -31),
    ("0b101", 5),
    ("1_000", 1000),
    ("1__0", 10),
    ("_1", "_1"),
    ("1:30", 90),
    ("1:30:30", 5430),
    ("1:60", "1:60"),
    ("0:30", "0:30"),
    ("190:20:30.15", 685230.15),
    ("+12", 12),
    ("-0", 0),
    ("2147483648", 2147483648),
    ("yes", True),
    ("No", False),
    ("on", True),
    ("OFF", False),
    ("yEs", "yEs"),
    ("y", "y"),
    ("1e5", 100000.0),
    ("12e03", 12000.0),
    (".5", 0.5),
    ("-.5", -0.5),
    ("5.", 5.0),
    ("0.1_0", 0.1),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("~", None),
    ("null", None),
    ("", None),
    ("nuLL", "nuLL"),
    ("1,000", "1,000"),
    ("'10'", "10"),
    ('"yes"', "yes"),
    ("!!int '10'", 10),
    ("!!str 10", "10"),
    ("!!bool yes", True),
]


def served(text: str) -> dict[str, Any]:
    return load_model_config(text, "c", ConfigError)


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        served(text)
    assert len(error.value.problems) == 1
    assert "\n" not in error.value.message
    return error.value.message


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text for text, _ in SCALARS])
def test_a_scalar_is_what_torchserve_takes_it_for(text: str, value: Any) -> None:
    found = served(f"key: {text}\n")["key"]
    assert (found, type(found)) == (value, type(value))


def test_a_number_that_is_none_is_nan() -> None:
    assert math.isnan(served("key: .NaN\n")["key"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("base: &b {responseTimeout: 20}\n<<: *b\n", {"base": {"responseTimeout": 20}, "responseTimeout": 20}),
        ("a: 1\n<<: {a: 2}\n", {"a": 1}),
        ("<<: {a: 2}\na: 1\n", {"a": 1}),
        ("<<: [{a: 1, b: 1}, {a: 2, c: 2}]\nb: 3\n", {"a": 1, "b": 3, "c": 2}),
        ("<<: {a: 1}\n<<: {a: 2, b: 2}\n", {"a": 1, "b": 2}),
        ("a: 1\na: 2\n", {"a": 2}),
        ("'<<': {a: 1}\n", {"<<": {"a": 1}}),
        (
            "x: &x {a: 1}\ny: &y\n  <<: *x\n  b: 2\nz:\n  <<: *y\n",
            {"x": {"a": 1}, "y": {"a": 1, "b": 2}, "z": {"a": 1, "b": 2}},
        ),
        ("%YAML 1.1\n---\na: 010\n...\n", {"a": 8}),
        ("a: |\n  x\n", {"a": "x\n"}),
    ],
)
def test_merges_and_repeated_keys_are_read_as_torchserve_reads_them(text: str, value: dict[str, Any]) -> None:
    assert served(text) == value


def test_lines_are_known_of_merged_and_repeated_keys_too() -> None:
    data = load_model_config("base: &b\n  minWorkers: 1\n<<: *b\nbatchSize: 1\nbatchSize: 2\n", "c", ConfigError)
    assert [line_of(data, key) for key in ("base", "minWorkers", "batchSize", "none")] == [1, 2, 5, None]
    assert data.repeated == [("batchSize", 4)]
    strict = load_mapping("base: &b\n  minWorkers: 1\n<<: *b\n", "c", ConfigError)
    assert strict["minWorkers"] == 1
    assert [line_of(strict, key) for key in ("base", "minWorkers", "none")] == [1, None, None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a mapping"),
        ("# only a comment\n", "expected a mapping"),
        ("- a\n", "expected a mapping"),
        ("text\n", "expected a mapping"),
        ("yes: 1\n", "line 1: the key True is not a text in YAML 1.1"),
        ("a: 1\n12: 1\n", "line 2: the key 12 is not a text"),
        ("? ~\n: 1\n", "the key None is not a text"),
        ("torchrun:\n  1: 2\n", "line 2: the key 1 is not a text"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: *b\n", "undefined alias"),
        ("a: &a [*a]\n", "line 1: the alias 'a' is inside its own anchor"),
        ("&a a: &b {c: *b}\n", "is inside its own anchor"),
        ("a: 1\n--- {}\n", "a second document begins"),
        ("<<: 5\n", "expected a mapping or a list of mappings"),
        ("a: <<\n", "<< is used as a value"),
        ("? [a]\n: 1\n", "a key is a list or a mapping"),
        ("a: !!python/object/apply:os.system [id]\n", "is not supported"),
        ("a: !!int b\n", "does not fit 'b'"),
        ("a: " + "1" * 5000, "not a number"),
        ("%YAML 2.0\n---\na: 1\n", "not valid YAML"),
    ],
)
def test_what_torchserve_cannot_load_is_refused_in_one_line(text: str, reason: str) -> None:
    assert reason in problem(text)


def bombs() -> dict[str, str]:
    lists = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    merges = "a0: &a0 {k: v}\n"
    for level in range(1, 40):
        before = f"*a{level - 1}"
        lists += f"a{level}: &a{level} [{', '.join([before] * 9)}]\n"
        merges += f"a{level}: &a{level}\n  <<: [{before}, {before}]\n  k{level}: {before}\n"
    return {
        "lists": lists,
        "merges": merges,
        "many aliases": "a: &a [1]\nb: [" + "*a, " * (MAX_ALIASES + 1) + "1]\n",
        "brackets": "a: " + "[" * 300,
        "closed brackets": "a: " + "[" * 300 + "]" * 300,
        "a hundred thousand brackets": "[" * 100_000,
        "braces": "{a: " * 5000,
        "dashes": "- " * 100_000,
        "questions": "? " * 100_000,
        "many values": "a: [" + "1, " * (MAX_NODES + 1) + "1]\n",
        "long": "a: " + "x" * MAX_CHARACTERS,
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_a_bomb_is_refused_before_it_takes_time(name: str) -> None:
    text = bombs()[name]
    began = time.process_time()
    for load in (load_mapping, load_model_config):
        with pytest.raises(ConfigError):
            load(text, "c", ConfigError)
    # A hundred times what it takes; without the bounds some of these do not end.
    assert time.process_time() - began < 20


def test_the_bounds_themselves_are_allowed() -> None:
    inner = MAX_DEPTH - 1
    assert served("a: " + "[" * inner + "]" * inner)
    assert served("a: &a [1]\nb: [" + "*a, " * MAX_ALIASES + "1]\n")
    assert "nested more than" in problem("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH)


PIECES = [*"[]{}:,-?&*!|>%@`'\"#~=\n\t \r\0a1é\u2028", "- ", ": ", "<<", "&a", "*a", "!!", "---", "...", "\n  "]


def outcome(load: Any, text: str) -> Any:
    try:
        return load(text, "c", FormatError)
    except FormatError as error:
        return error


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60))
def test_no_text_gives_anything_but_a_mapping_or_a_format_error(text: str) -> None:
    for load in (load_mapping, load_model_config):
        found = outcome(load, text)
        if isinstance(found, FormatError):
            assert found.problems
            assert "\n" not in "".join(found.problems)
        else:
            assert all((line_of(found, key) or 1) > 0 for key in found)


scalars = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=8)
trees = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=6), trees, max_size=4))
def test_what_marsmith_writes_torchserve_reads_as_it_was_meant(data: dict[str, Any]) -> None:
    assert served(dump(data)) == data


def test_a_text_of_several_lines_is_a_block_if_that_is_asked_for() -> None:
    data = {"plain": "a\n", "name": "a: b"}
    assert dump(data) == 'plain: "a\\n"\nname: "a: b"\n'
    assert dump(data, blocks=True) == 'plain: |\n  a\nname: "a: b"\n'
