"""How replies are shown and kept: values laid out, text as text, bytes byte for byte."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.cli.replies import Body, check_output, keep, show
from marsmith.errors import MarsmithError, UsageError

PNG = b"\x89PNG\r\n\x1a\n\xff"


@pytest.mark.parametrize(
    ("body", "record", "suffix"),
    [
        (Body(b'{"a": 1}', "application/json"), {"reply": {"a": 1}}, ".json"),
        (Body(b'{"a": 1}'), {"reply": {"a": 1}}, ".json"),
        (Body(b"null"), {"reply": None}, ".json"),
        (Body(b"NaN"), {"reply": "NaN"}, ".txt"),
        (Body(b"[" * 100_000), {"reply": "[" * 100_000}, ".txt"),
        (Body("caf\u00e9".encode()), {"reply": "caf\u00e9"}, ".txt"),
        (Body("caf\u00e9".encode("latin-1"), "text/plain; charset=ISO-8859-1"), {"reply": "caf\u00e9"}, ".txt"),
        (Body("caf\u00e9".encode("utf-16"), 'text/csv; charset="utf-16"'), {"reply": "caf\u00e9"}, ".csv"),
        (Body(b"<svg/>", "image/svg+xml"), {"reply": "<svg/>"}, ".txt"),
        (Body(b"caf\xe9", "text/plain"), {"reply_base64": base64.b64encode(b"caf\xe9").decode()}, ".txt"),
        (Body(b"abc", "text/plain; charset=hex"), {"reply_base64": "YWJj"}, ".txt"),
        (Body(b"abc", "text/plain; charset=no-such"), {"reply_base64": "YWJj"}, ".txt"),
        (Body(b"123", "application/octet-stream"), {"reply_base64": "MTIz"}, ".bin"),
        (Body(b"123", "image/png"), {"reply_base64": "MTIz"}, ".png"),
        (Body(PNG), {"reply_base64": base64.b64encode(PNG).decode()}, ".png"),
        (Body(b"\x00abc"), {"reply_base64": "AGFiYw=="}, ".bin"),
        (Body(b""), {"reply": ""}, ".txt"),
    ],
)
def test_what_a_reply_is_told_by_its_type_else_by_its_bytes(body: Body, record: object, suffix: str) -> None:
    assert body.record() == record
    assert body.suffix == suffix


@given(st.binary(max_size=200), st.sampled_from(["", "image/png", "application/octet-stream", "text/plain"]))
def test_every_reply_is_in_its_record_whole(content: bytes, kind: str) -> None:
    body = Body(content, kind)
    record = body.record()
    if "reply_base64" in record:
        assert base64.b64decode(record["reply_base64"]) == content
    elif not body.has_value:
        assert record["reply"].encode() == content


@pytest.mark.parametrize(
    "body",
    [
        Body(PNG, "image/png"),
        Body(b"no line break at the end"),
        Body(b"one\r\ntwo\n"),
        Body("caf\u00e9".encode("latin-1"), "text/plain; charset=latin-1"),
        Body(b"123", "application/octet-stream"),
        Body(b"\xff\xfe\x00"),
    ],
)
def test_what_goes_to_a_file_is_what_came(body: Body, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert show(body)
    assert capfdbinary.readouterr() == (body.content, b"")


def on_a_terminal(body: Body) -> tuple[bool, str]:
    """Show a reply on a terminal; return whether it could be shown, and what the terminal got."""
    reader, writer = os.openpty()
    before, shown = os.dup(1), False
    os.dup2(writer, 1)
    try:
        with open(1, "w", encoding="utf-8", closefd=False) as out, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", out)
            shown = show(body)
            print("END")
            out.flush()
        got = b""
        while not got.endswith(b"END\r\n"):
            got += os.read(reader, 1000)
    finally:
        os.dup2(before, 1)
        for descriptor in (before, reader, writer):
            os.close(descriptor)
    return shown, got.decode().replace("\r\n", "\n").removesuffix("END\n")


def test_a_terminal_gets_text_and_for_bytes_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_a_terminal(Body("caf\u00e9".encode("latin-1"), "text/plain; charset=latin-1")) == (True, "caf\u00e9\n")
    assert on_a_terminal(Body(b"\x1b[2Jgone\tnot", "text/plain")) == (True, "\\u001b[2Jgone\tnot\n")
    assert on_a_terminal(Body(PNG, "image/png")) == (False, "")
    assert (
        capsys.readouterr().err == "the reply is 9 bytes of image/png, which a terminal cannot show: -o FILE saves it\n"
    )


def test_replies_are_kept_byte_for_byte_each_under_a_name_of_its_own(tmp_path: Path) -> None:
    keep(str(tmp_path / "one.png"), [("in.jpg", Body(PNG, "image/png"))])
    assert (tmp_path / "one.png").read_bytes() == PNG
    replies = [("a.jpg", Body(PNG)), ("a.png", Body(b"2", "image/png")), ("bad", None), ("b", Body(b"{}"))]
    keep(str(tmp_path / "all"), replies)
    found = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    assert found == {"a.png": PNG, "a-2.png": b"2", "b.json": b"{}"}


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MarsmithError, match=r"cannot write .*out: No space left on device"):
        keep(str(tmp_path / "out"), [("in", Body(PNG))])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out": b"before"}


def test_a_device_is_written_to_and_not_replaced() -> None:
    keep(os.devnull, [("in", Body(PNG))])
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize(
    ("output", "inputs", "as_json", "problem"),
    [
        ("nowhere/out.png", 1, False, "no folder"),
        ("file", 2, False, "is a file, and there are 2 replies"),
        ("-", 2, False, "cannot go to stdout as one"),
        ("out", 1, True, "leave out -o"),
    ],
)
def test_where_replies_cannot_be_kept_is_told_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, inputs: int, as_json: bool, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=problem) as caught:
        check_output(output, inputs, as_json=as_json)
    assert caught.value.tip
