"""Frames between the front and a worker."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.host.frames import FrameBuffer, encode, read_frame

MESSAGES = st.lists(
    st.tuples(
        st.dictionaries(st.text(max_size=5).filter(lambda key: key not in ("kind", "sizes")), st.text(), max_size=3),
        st.lists(st.binary(max_size=40), max_size=4),
    ),
    max_size=4,
)


@given(MESSAGES, st.integers(1, 50))
def test_what_is_encoded_arrives_whole_in_whatever_pieces(
    messages: list[tuple[dict[str, str], list[bytes]]], size: int
) -> None:
    data = b"".join(b"".join(encode("test", head, blocks)) for head, blocks in messages)
    buffer = FrameBuffer()
    frames = [frame for at in range(0, len(data), size) for frame in buffer.feed(data[at : at + size])]
    source = io.BytesIO(data)
    for head, blocks in messages:
        (frame, read) = frames.pop(0), read_frame(source)
        assert frame == read
        assert frame.kind == "test"
        assert {key: frame.head[key] for key in head} == head
        assert frame.blocks == tuple(blocks)
    assert not frames
    assert read_frame(source) is None


@given(st.binary(min_size=1, max_size=30))
def test_a_frame_that_is_cut_off_is_the_end(content: bytes) -> None:
    whole = b"".join(encode("test", {}, [content]))
    for end in range(len(whole)):
        assert read_frame(io.BytesIO(whole[:end])) is None


def test_a_head_of_impossible_length_is_not_waited_for() -> None:
    with pytest.raises(ValueError, match="4294967295 bytes"):
        list(FrameBuffer().feed(b"\xff\xff\xff\xff"))
