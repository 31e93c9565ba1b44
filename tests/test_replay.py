"""Examples: their replies recorded when an archive is built, and proved again from the archive alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.errors import ArchiveError, HandlerError
from marsmith.formats.examples import FILE_NAME, FOLDER, ValidatedExample, difference, render_examples
from marsmith.replay import ExampleRequest, _rounded, replay, validate_examples
from marsmith.runner import Runner
from runner_archives import make_archive

# Answers with what stands in reply.json, or with bytes.
HANDLER = """
from pathlib import Path
def handle(data, context):
    if data is None:
        return
    reply = (Path(context.system_properties["model_dir"]) / "reply.json").read_text()
    if reply == "bytes":
        return [bytes(d["body"]) * 2 for d in data]
    if reply == "fail":
        raise ValueError("broken handler")
    return [reply for d in data]
"""


def archive_that_answers(folder: Path, reply: str) -> Path:
    return make_archive(folder, HANDLER, files={"reply.json": reply})


def validated(archive: Path, *, expect: str | None = None, tolerance: float = 1e-3) -> ValidatedExample:
    with Runner(archive) as runner:
        (example,) = validate_examples(runner, [ExampleRequest("cat.jpg", b"cat", "image/jpeg", tolerance, expect)])
    return example


def with_example(archive: Path, example: ValidatedExample) -> Path:
    (archive / FOLDER).mkdir()
    (archive / FOLDER / example.input).write_bytes(b"cat")
    (archive / FILE_NAME).write_text(render_examples([example]))
    return archive


def test_a_json_reply_is_recorded_with_six_digits_and_its_keys_in_order(tmp_path: Path) -> None:
    example = validated(archive_that_answers(tmp_path, '{"tabby": 0.87654321, "n": 3, "lynx": [0.1234567891]}'))
    assert json.dumps(example.reply) == '{"tabby": 0.876543, "n": 3, "lynx": [0.123457]}'
    assert (example.status, example.content_type, example.reply_sha256) == (200, "image/jpeg", None)


def test_a_reply_that_is_not_json_is_recorded_by_its_digest(tmp_path: Path) -> None:
    example = validated(archive_that_answers(tmp_path, "bytes"))
    assert example.reply is None
    assert example.reply_sha256 == hashlib.sha256(b"catcat").hexdigest()


def test_the_expected_label_must_come_out_on_top(tmp_path: Path) -> None:
    archive = archive_that_answers(tmp_path, '{"lynx": 0.1, "tabby": 0.9}')
    assert validated(archive, expect="tabby").status == 200
    with pytest.raises(HandlerError, match=r"'cat\.jpg' expects 'lynx', but 'tabby' came out on top"):
        validated(archive, expect="lynx")


def test_a_reply_without_labels_cannot_meet_an_expectation(tmp_path: Path) -> None:
    with pytest.raises(HandlerError, match=r"expects 'tabby', but the reply names none: \[1, 2\]"):
        validated(archive_that_answers(tmp_path, "[1, 2]"), expect="tabby")


def test_an_example_that_the_handler_refuses_stops_the_build_with_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(HandlerError) as caught:
        validated(archive_that_answers(tmp_path, "fail"))
    assert "'cat.jpg' got status 503" in caught.value.message
    assert "ValueError: broken handler" in caught.value.message


@pytest.mark.parametrize("reply", ['{"tabby": 0.87654321}', "bytes", "null", "[NaN]", '"text"', "12345678.9"])
def test_an_archive_that_answers_as_before_replays_without_differences(tmp_path: Path, reply: str) -> None:
    archive = archive_that_answers(tmp_path, reply)
    assert replay(with_example(archive, validated(archive))) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('{"tabby": 0.9}', '{"tabby": 0.8}', "reply['tabby']: 0.8 instead of 0.9"),
        ('{"tabby": 0.9}', '{"lynx": 0.9}', "lacks ['tabby']"),
        ('{"tabby": 0.9}', "<html>", "no longer JSON: <html>"),
        ("null", "[NaN]", "another digest"),
        ('{"tabby": 0.9}', "fail", "status 503 instead of 200"),
    ],
)
def test_an_archive_that_answers_differently_is_found_out(tmp_path: Path, before: str, after: str, said: str) -> None:
    archive = archive_that_answers(tmp_path, before)
    with_example(archive, validated(archive))
    (archive / "reply.json").write_text(after)
    (found,) = replay(archive)
    assert found.startswith("example 'cat.jpg': ")
    assert said in found


def test_a_difference_within_the_tolerance_is_none(tmp_path: Path) -> None:
    archive = archive_that_answers(tmp_path, '{"tabby": 0.9}')
    with_example(archive, validated(archive, tolerance=0.05))
    (archive / "reply.json").write_text('{"tabby": 0.94}')
    assert replay(archive) == []


def test_an_archive_without_examples_has_nothing_to_replay(tmp_path: Path) -> None:
    assert replay(archive_that_answers(tmp_path, "1")) == []


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    archive = archive_that_answers(tmp_path, "1")
    with_example(archive, validated(archive))
    (archive / FOLDER / "cat.jpg").unlink()
    with pytest.raises(ArchiveError, match=r"cat\.jpg"):
        replay(archive)


@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(), st.lists))
def test_a_rounded_reply_always_agrees_with_the_one_that_it_records(value: object) -> None:
    assert difference(_rounded(value, 1e-3), value, 1e-3) is None
