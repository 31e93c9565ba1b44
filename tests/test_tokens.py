"""The key file of TorchServe: what it says, when a token is due, and what is unsafe about it."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.errors import AuthorizationError, FormatError
from marsmith.rest import Transport
from marsmith.run_state import RunState
from marsmith.tokens import MARGIN, KeyFile, Token, TokenSource, parse_instant, parse_key_file, read_key_file, token

# As TorchServe 0.12 wrote it, with other keys.
WRITTEN = """{
  "management": {"key": "B-E5KSRM", "expiration time": "2999-02-16T05:12:24.801942Z"},
  "inference": {"key": "gNRuA7dS", "expiration time": "2999-02-16T05:12:24.801955123Z"},
  "API": {"key": "yv9uQajP"}
}"""


def write(path: Path, text: str = WRITTEN, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_file_gives_a_token_for_each_role(tmp_path: Path) -> None:
    keys = read_key_file(write(tmp_path / "key_file.json"))
    assert keys.of("inference").value == "gNRuA7dS"
    assert keys.of("inference").expires == datetime(2999, 2, 16, 5, 12, 24, 801955, UTC)
    assert keys.of("management").value == "B-E5KSRM"
    assert keys.of("api") == Token("yv9uQajP", None)
    assert keys.warnings == ()


def test_a_key_file_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "key_file.json", mode=0o644)
    assert read_key_file(path).warnings == (f"{path} can be read by others (mode 0644): chmod 600 {path}",)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthorizationError, match=r"nowhere\.json"):
        read_key_file(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ("[]", "indices"),
        ("{}", "has no 'inference'"),
        (WRITTEN.replace("yv9uQajP", "a\\r\\nX-Evil: 1"), "without spaces"),
        (WRITTEN.replace("2999-02-16T05:12:24.801942Z", "tomorrow"), "not a time"),
        (WRITTEN.replace('"yv9uQajP"', "7"), "without spaces"),
    ],
)
def test_a_malformed_key_file_is_refused(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        parse_key_file(text)


def test_a_file_that_is_being_written_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "key_file.json", "")
    threading.Timer(0.06, lambda: write(path)).start()
    assert read_key_file(path).inference.value == "gNRuA7dS"


def test_a_token_is_due_shortly_before_it_expires() -> None:
    expires = datetime(2030, 1, 1, tzinfo=UTC)
    assert not Token("a", expires).is_due(expires - MARGIN - timedelta(seconds=1))
    assert Token("a", expires).is_due(expires - MARGIN)
    assert not Token("a", None).is_due(expires)


def test_a_token_is_never_printed_by_accident() -> None:
    keys: KeyFile = parse_key_file(WRITTEN)
    assert "gNRuA7dS" not in repr(keys)


@settings(max_examples=50)
@given(
    st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2999, 1, 1)),
    st.sampled_from([0, 3, 6, 9]),
)
def test_every_time_that_java_prints_is_read(moment: datetime, digits: int) -> None:
    fraction = f"{moment.microsecond:06d}000"[:digits]
    text = moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if digits else "") + "Z"
    expected = moment.replace(tzinfo=UTC, microsecond=int(fraction.ljust(6, "0")[:6]))
    assert parse_instant(text.replace(f"{moment.year:d}-", f"{moment.year:04d}-", 1)) == expected


def test_an_expired_token_cannot_be_renewed_without_the_management_api(tmp_path: Path) -> None:
    path = write(tmp_path / "key_file.json", WRITTEN.replace("2999", "1999"))
    transport = Transport()
    with pytest.raises(AuthorizationError, match="has expired"):
        TokenSource(path, transport, None).get("inference")
    assert TokenSource(path, transport, None).get("api") == "yv9uQajP"
    transport.close()


def test_a_refused_token_is_replaced_only_by_another_one(tmp_path: Path) -> None:
    path = write(tmp_path / "key_file.json")
    transport = Transport()
    source = TokenSource(path, transport, None)
    used = source.get("inference")
    assert source.after_refusal("inference", used) is None
    write(
        path,
        json.dumps({**json.loads(WRITTEN), "inference": {"key": "new", "expiration time": "2999-01-01T00:00:00Z"}}),
    )
    assert source.after_refusal("inference", used) == "new"
    transport.close()


def test_a_server_without_tokens_has_none_to_print(tmp_path: Path) -> None:
    state = RunState(1, 0.0, "", "", "", "", "", tmp_path, tokens=False)
    with pytest.raises(AuthorizationError, match="asks for no token"):
        token(state, "inference")
