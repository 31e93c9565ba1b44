from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.archive.answers import difference
from marsmith.archive.examples import ValidatedExample, parse_examples, render_examples
from marsmith.errors import FormatError

replies = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-100, 100), st.floats(-1, 1), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(replies)
def test_a_reply_equals_itself_after_a_round_trip(reply: object) -> None:
    example = ValidatedExample("cat.png", "image/png", 200, reply, None, 1e-3)
    assert parse_examples(render_examples([example])) == [example]
    assert difference(reply, json.loads(json.dumps(reply)), 0.0) is None


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        ({"cat": 0.5}, {"cat": 0.502}, "reply['cat']: 0.502 instead of 0.5 (tolerance 0.001)"),
        ({"cat": 0.5}, {"dog": 0.5}, "reply lacks ['cat'] and has unexpected ['dog']"),
        ([1, 2], [1], "reply: 1 items instead of 2"),
        ({"a": [{"b": "x"}]}, {"a": [{"b": "y"}]}, "reply['a'][0]['b']: 'y' instead of 'x'"),
        (True, 1, "reply: 1 instead of True"),
    ],
)
def test_a_difference_names_its_place(expected: object, actual: object, message: str) -> None:
    assert difference(expected, actual, 1e-3) == message


def test_numbers_within_the_tolerance_agree() -> None:
    assert difference({"cat": 0.5}, {"cat": 0.5009}, 1e-3) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "expected a list"),
        ("[1]", r"\[0\]: expected a mapping"),
        ('[{"input": 1}]', r"\[0\]: input is 1"),
        ('[{"input": "../../secret"}]', "is not a file name"),
        ('[{"inptu": "a"}]', "unknown key 'inptu'"),
    ],
)
def test_a_damaged_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_examples(text)
