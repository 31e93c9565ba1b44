"""Forms of too many fields, as TorchServe's own worker reads them from its socket with our bound on."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ts.protocol import otf_message_handler

from marsmith.runtime.worker_protocol import InferenceRequest, Parameter, encode_predict
from marsmith_handler import worker_messages
from marsmith_handler.envelope import open_envelope
from marsmith_handler.errors import ContentTooLarge
from marsmith_handler.worker_messages import TOO_MANY_FIELDS, FieldReader, bound_fields, whole_fields
from support.huge_forms import FORMS, Field, wire

READ = otf_message_handler._retrieve_input_data
SMALL = Parameter("a", b"", "")
LARGE = Parameter("large", bytes(300), "image/png")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    otf_message_handler._retrieve_input_data = READ


def received(messages: bytes, count: int) -> list[Any]:
    """Return what TorchServe's worker makes of messages, one behind the other."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(messages,))
        sender.start()
        found = [otf_message_handler.retrieve_msg(theirs)[1] for _ in range(count)]
        sender.join()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    return found


def form(count: int, parameter: Parameter = SMALL) -> InferenceRequest:
    return InferenceRequest("id", {"h": "v"}, (parameter,) * count)


def names(message: Any) -> list[list[str]]:
    return [[parameter["name"] for parameter in request["parameters"]] for request in message]


@pytest.mark.parametrize("most", [1, 3])
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.booleans(), st.integers(1, 400))
@settings(max_examples=60)
def test_the_first_fields_are_read_and_what_is_behind_the_last_is_left_whole(
    most: int, counts: list[int], large: bool, peeked: int
) -> None:
    one = LARGE if large else SMALL
    batch = encode_predict([form(count, one) for count in counts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_messages, "_PEEKED", peeked)
        patch.setattr(otf_message_handler, "_retrieve_input_data", FieldReader(READ, most))
        first, second = received(batch + encode_predict([form(1)]), 2)
    wanted = [[one.name] * min(count, most) + [TOO_MANY_FIELDS] * (count > most) for count in counts]
    assert (names(first), names(second)) == (wanted, [["a"]])
    assert all(request["headers"][0]["value"] == b"v" for request in first)


def test_fields_that_are_too_many_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[None] = []
    monkeypatch.setattr(
        otf_message_handler, "_retrieve_input_data", lambda socket: (made.append(None), READ(socket))[1]
    )
    bound_fields(10)
    (message,) = received(encode_predict([form(200_000)]), 1)
    assert names(message) == [["a"] * worker_messages.MOST_FIELDS + [TOO_MANY_FIELDS]]
    # Now and then the socket holds less than one field.
    assert len(made) < 20_000


def lines_run(work: Callable[[], Any]) -> int:
    """Return how many lines of Python ran."""
    lines = 0

    def count(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    traced = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(traced)
    return lines


@pytest.mark.parametrize("name", FORMS)
def test_fields_are_passed_over_without_a_step_for_each(name: str) -> None:
    fields, length = FORMS[name]
    body = 256 * 1024
    data = wire(fields) * (body // length)
    found: list[tuple[int, bool]] = []
    # One step of Python has about ten lines. A body of the largest allowed size takes 64 times as many.
    assert lines_run(lambda: found.append(whole_fields(data))) < body / 3
    assert found == [(len(data), False)]


PARTS = st.one_of(st.binary(max_size=4), st.integers(0, 300).map(bytes))


@given(st.lists(st.tuples(PARTS, PARTS, PARTS), max_size=12), st.booleans(), st.data())
def test_whole_fields_end_before_the_first_that_is_cut(fields: list[Field], ended: bool, data: st.DataObject) -> None:
    message = wire(fields) + b"\xff" * 4 * ended
    ends = [len(wire(fields[:count])) for count in range(len(fields) + 1)]
    cut = data.draw(st.one_of(st.just(len(message)), st.integers(0, len(message))))
    whole = (len(message), True) if ended and cut == len(message) else (max(end for end in ends if end <= cut), False)
    assert whole_fields(message[:cut]) == whole
    assert whole_fields(message + b"\0\0\0\1") == ((len(message), True) if ended else (len(message), False))


def test_the_bound_is_set_once_and_follows_the_setting() -> None:
    for most in (5, 5000):
        bound_fields(most)
        reader = otf_message_handler._retrieve_input_data
        assert isinstance(reader, FieldReader)
        assert (reader.read, reader._most) == (READ, max(most, worker_messages.MOST_FIELDS))


def test_a_request_of_too_many_fields_is_413_whatever_their_names() -> None:
    for fields in ({"data": b"x", TOO_MANY_FIELDS: b""}, {TOO_MANY_FIELDS: b""}):
        with pytest.raises(ContentTooLarge, match="more fields than are read"):
            open_envelope(fields, {"content-type": "application/x-www-form-urlencoded"})
