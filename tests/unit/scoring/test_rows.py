"""Rows of a part: typed columns for what has a form, text for what has not, words for errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.scoring.rows import Row, form_of, reply_of, to_table
from marsmith.scoring.score import quarantined_name

CLASSES = {"tiger cat": 0.75, "tabby": 0.125}
VECTOR = [0.5, -1.25, 3.0]
BOXES = [{"cat": [1.0, 2.0, 3.5, 4.0], "score": 0.5}, {"dog": [0.0, 0.0, 1.0, 1.0], "score": 0.25}]
FORMS: list[tuple[str, Any]] = [
    ("classes", CLASSES),
    ("vector", VECTOR),
    ("boxes", BOXES),
    ("json", {"a": ["b", None]}),
]


def row(reply: Any, key: str = "k") -> Row:
    return Row(key, 200, json.dumps(reply).encode(), "application/json")


@pytest.mark.parametrize(("form", "reply"), FORMS)
def test_a_reply_has_a_form_and_comes_back_from_its_columns(form: str, reply: Any) -> None:
    assert form_of(reply) == form
    (read,) = to_table([row(reply)], form).to_pylist()
    assert reply_of(read) == reply
    assert (read["key"], read["status"], read["error"]) == ("k", 200, None)
    assert (read["reply"] is None) == (form != "json")


@pytest.mark.parametrize(
    "reply", [{}, [], "x", 3, None, {"a": 2.0}, {"a": True}, [True], [{"cat": [1, 2, 3], "score": 1}], [{"score": 1}]]
)
def test_what_only_looks_like_one_has_no_form(reply: Any) -> None:
    assert form_of(reply) == ("boxes" if reply == [] else "json")


@pytest.mark.parametrize("form", ["classes", "vector", "boxes"])
def test_a_reply_of_another_form_is_kept_as_text(form: str) -> None:
    (read,) = to_table([row({"odd": "one"})], form).to_pylist()
    assert json.loads(read["reply"]) == {"odd": "one"}
    assert reply_of(read) == {"odd": "one"}


@pytest.mark.parametrize("name", ["a.jpg", "猫" * 85, "x" * 255, "a\nb", "猫" * 10_000, "", "."])
def test_the_copy_of_a_bad_input_gets_a_name_that_a_file_may_have(name: str, tmp_path: Path) -> None:
    copy = tmp_path / quarantined_name(f"photos/{name}")
    copy.write_bytes(b"x")
    assert copy.name.endswith(name[-40:] or "-input")


def test_the_columns_do_not_depend_on_the_replies() -> None:
    bad = Row("k", 404, error="there is no such file")
    assert to_table([bad], "classes").schema == to_table([row(CLASSES)], "classes").schema
    (read,) = to_table([bad], "classes").to_pylist()
    assert (read["status"], read["error"], read["label"], reply_of(read)) == (404, "there is no such file", None, None)


def test_an_error_has_the_words_of_the_handler() -> None:
    body = json.dumps({"code": 415, "message": "not an image"}).encode()
    read = to_table([Row("a", 415, body), Row("b", 500, b"plain"), Row("c", 500, b"\xff")], "classes").to_pylist()
    assert [each["error"] for each in read] == ["not an image", "plain", "/w=="]


def test_the_best_class_is_a_column_of_its_own() -> None:
    (read,) = to_table([row({"b": 0.25, "a": 0.5})], "classes").to_pylist()
    assert (read["label"], read["probability"], read["labels"]) == ("a", 0.5, ["b", "a"])


@given(st.dictionaries(st.text(max_size=5), st.floats(0, 1), min_size=1))
def test_any_classes_come_back_exactly(reply: dict[str, float]) -> None:
    (read,) = to_table([row(reply)], "classes").to_pylist()
    assert reply_of(read) == reply
