"""Examples: their replies recorded when an archive is built, and proved again from the archive alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.archive import Archive
from marsmith.archive.answers import difference
from marsmith.archive.examples import FILE_NAME, FOLDER, ValidatedExample, render_examples
from marsmith.archive.verify import verify
from marsmith.build.assembly import proved_examples
from marsmith.errors import ArchiveError, HandlerError
from marsmith.runtime import Runner
from marsmith.runtime.replay import ExampleRequest, _rounded, replay, replay_checks, validate_examples
from support.runner_archives import make_archive

# Answers a body with what stands for it in replies.json, or with bytes.
HANDLER = """
import json
from pathlib import Path
def handle(data, context):
    if data is None:
        return
    replies = json.loads((Path(context.system_properties["model_dir"]) / "replies.json").read_text())
    return [answer(bytes(d["body"]), replies) for d in data]

def answer(body, replies):
    reply = replies[body.decode()]
    if reply == "fail":
        raise ValueError("broken handler")
    return bytes([255]) + body if reply == "bytes" else reply
"""


def archive_that_answers(folder: Path, *replies: str) -> Path:
    """An archive that answers the bodies 0, 1, 2 ... so; one worker for all of them, as each takes seconds to start."""
    return make_archive(folder, HANDLER, files={"replies.json": json.dumps(dict(enumerate(replies)))})


def answer_now(archive: Path, *replies: str) -> None:
    (archive / "replies.json").write_text(json.dumps(dict(enumerate(replies))))


def request(number: int, *, expect: str | None = None, tolerance: float = 1e-3) -> ExampleRequest:
    return ExampleRequest(f"{number}.jpg", str(number).encode(), "image/jpeg", tolerance, expect)


def validated(archive: Path, *requests: ExampleRequest) -> list[ValidatedExample]:
    with Runner(archive) as runner:
        return validate_examples(runner, requests or [request(0)])


def with_examples(archive: Path, *requests: ExampleRequest) -> Path:
    """Validate examples, and lay them into the archive."""
    examples = validated(archive, *requests)
    (archive / FOLDER).mkdir()
    for number, example in enumerate(examples):
        (archive / FOLDER / example.input).write_text(str(number))
        if example.reply_file is not None:
            (archive / FOLDER / example.reply_file).write_bytes(example.recorded or b"")
    (archive / FILE_NAME).write_text(render_examples(examples))
    return archive


def test_json_is_recorded_with_six_digits_and_its_keys_in_order_and_bytes_by_their_digest(tmp_path: Path) -> None:
    archive = archive_that_answers(tmp_path, '{"tabby": 0.87654321, "n": 3, "lynx": [0.1234567891]}', "bytes")
    example, in_bytes = validated(archive, request(0), request(1))
    assert json.dumps(example.reply) == '{"tabby": 0.876543, "n": 3, "lynx": [0.123457]}'
    assert (example.status, example.content_type, example.reply_sha256) == (200, "image/jpeg", None)
    assert (in_bytes.reply, in_bytes.reply_sha256) == (None, hashlib.sha256(b"\xff1").hexdigest())


def test_what_is_not_the_expected_reply_stops_the_build(tmp_path: Path) -> None:
    archive = archive_that_answers(tmp_path, '{"lynx": 0.1, "tabby": 0.9}', "[1, 2]", "fail")
    with Runner(archive) as runner:
        assert validate_examples(runner, [request(0, expect="tabby")])[0].status == 200
        with pytest.raises(HandlerError, match=r"'0\.jpg' expects 'lynx', but 'tabby' is the top label"):
            validate_examples(runner, [request(0, expect="lynx")])
        with pytest.raises(HandlerError, match=r"expects 'tabby', but the reply names none: \[1, 2\]"):
            validate_examples(runner, [request(1, expect="tabby")])
        with pytest.raises(HandlerError) as caught:
            validate_examples(runner, [request(2)])
    assert "'2.jpg' got status 503" in caught.value.message
    assert "ValueError: broken handler" in caught.value.message


def test_an_archive_that_answers_as_before_replays_without_differences(tmp_path: Path) -> None:
    replies = ('{"tabby": 0.87654321}', "bytes", "null", "[NaN]", '"text"', "12345678.9")
    archive = archive_that_answers(tmp_path, *replies)
    assert replay(with_examples(archive, *map(request, range(len(replies))))) == []


def test_an_archive_that_answers_differently_is_found_out(tmp_path: Path) -> None:
    changes = [
        ('{"tabby": 0.9}', '{"tabby": 0.8}', "reply['tabby']: 0.8 instead of 0.9"),
        ('{"tabby": 0.9}', '{"lynx": 0.9}', "lacks ['tabby']"),
        ('{"tabby": 0.9}', "<html>", "no longer JSON: <html>"),
        ("null", "[NaN]", "the reply is '[NaN]' instead of 'null'"),
        ('{"tabby": 0.9}', "fail", "status 503 instead of 200"),
    ]
    archive = archive_that_answers(tmp_path, *(before for before, _, _ in changes), '{"tabby": 0.9}')
    with_examples(archive, *map(request, range(len(changes))), request(len(changes), tolerance=0.05))
    # The last is within its tolerance.
    answer_now(archive, *(after for _, after, _ in changes), '{"tabby": 0.94}')
    found = replay(archive)
    assert len(found) == len(changes)
    for number, (line, (_, _, said)) in enumerate(zip(found, changes, strict=True)):
        assert line.startswith(f"example '{number}.jpg': ")
        assert said in line


def test_an_archive_without_examples_has_nothing_to_replay(tmp_path: Path) -> None:
    assert replay(archive_that_answers(tmp_path, "1")) == []


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    archive = archive_that_answers(tmp_path, "1")
    with_examples(archive)
    (archive / FOLDER / "0.jpg").unlink()
    with pytest.raises(ArchiveError, match=r"0\.jpg"):
        replay(archive)


@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(), st.lists))
def test_a_rounded_reply_always_agrees_with_the_one_that_it_records(value: object) -> None:
    assert difference(_rounded(value, 1e-3), value, 1e-3) is None


# Answers bytes that are neither text nor an image, others at each call if told to, and computes in bfloat16.
OPAQUE = """
from pathlib import Path
def handle(data, context):
    if data is None:
        return
    if context.get_request_header(0, "describe") == "True":
        return [{"precision": "bfloat16", "engine_fell_back": False}]
    return [(Path(context.system_properties["model_dir"]) / "reply.bin").read_bytes() for _ in data]
"""


def opaque(folder: Path) -> Path:
    config = json.dumps({"minWorkers": 1, "handler": {"precision": "bfloat16"}})
    return make_archive(folder, OPAQUE, config=config, files={"reply.bin": "one\0"})


def test_bytes_that_only_a_digest_describes_are_said_to_be_unproved_and_not_right(tmp_path: Path) -> None:
    archive = with_examples(opaque(tmp_path), request(0))
    unproved: list[str] = []
    assert (replay(archive, unproved.append), unproved) == ([], [])
    (archive / "reply.bin").write_bytes(b"two\0")
    assert replay(archive, unproved.append) == []
    said = "the reply's 4 bytes are not those that were validated, of which only the digest is known"
    assert unproved == [f"example '0.jpg': {said}"]
    checks = verify(Archive.open(archive), environment=False, replay=replay_checks).checks
    told = {(check.outcome, check.detail.partition(":")[0]) for check in checks if check.name == "replay"}
    assert told == {("warning", "unproved"), ("ok", "0 examples got their validated replies")}


def test_a_build_says_which_replies_other_machines_cannot_prove(tmp_path: Path) -> None:
    steps: list[str] = []
    with Runner(opaque(tmp_path)) as runner:
        proved = proved_examples(runner, [request(0)], steps.append)
    assert proved.unproved == ("0.jpg",)
    assert proved.report() == {"repliesUnprovedElsewhere": ["0.jpg"]}
    assert "the reply to 0.jpg is bytes of an unknown kind" in steps[0]
    # Text is recorded, and so can be compared anywhere.
    (tmp_path / "reply.bin").write_bytes(b"a cat")
    with Runner(tmp_path) as runner:
        proved = proved_examples(runner, [request(0)], steps.append)
    assert (proved.unproved, proved.report()) == ((), {})
    assert {member.name: member.source for member in proved.members}[f"{FOLDER}/0.jpg.reply"] == b"a cat"
