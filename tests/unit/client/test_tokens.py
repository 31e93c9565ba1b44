"""The key file of TorchServe: what it says, when a token is due, and what is unsafe about it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.client.deadline import Deadline
from marsmith.client.http import Transport
from marsmith.client.key_file import MARGIN, KeyFile, Token, parse_instant, parse_key_file, read_key_file
from marsmith.client.tokens import TokenSource, token
from marsmith.errors import AuthorizationError, FormatError
from marsmith.run_state import RunState

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
    with pytest.raises(AuthorizationError, match="requires no token"):
        token(state, "inference")


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A key file, and a server that writes new tokens into it which have always expired: every call renews."""
    path = write(tmp_path / "key_file.json", WRITTEN.replace("2999", "1999"))
    numbers, writing = count(), threading.Lock()

    class Issuer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            role = parse_qs(urlsplit(self.path).query)["type"][0]
            with writing:
                keys = json.loads(path.read_text())
                keys[role]["key"] = f"token-{next(numbers)}"
                # In place, as TorchServe does: the lock is on the file.
                write(path, json.dumps(keys))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


TAKING_TURNS = """
import sys
from pathlib import Path
from marsmith.client.deadline import Deadline
from marsmith.client.http import Transport
from marsmith.client.tokens import TokenSource
source = TokenSource(Path(sys.argv[1]), Transport(), sys.argv[2])
for turn in range(10):
    source.get("inference", Deadline(600))
    source.rotate("inference", Deadline(600))
"""


def test_those_who_renew_and_those_who_rotate_never_wait_for_each_other_for_ever(issuer: tuple[Path, str]) -> None:
    path, url = issuer
    transport, done = Transport(), []
    source = TokenSource(path, transport, url)

    def work(number: int) -> None:
        for _ in range(10):
            (source.rotate if number % 2 else source.get)("inference", Deadline(600))
        done.append(number)

    # Daemons: where they wait for each other they must not keep the test process.
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    others = [subprocess.Popen([sys.executable, "-c", TAKING_TURNS, str(path), url]) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert sorted(done) == list(range(6))
        assert [other.wait(300) for other in others] == [0, 0]
    finally:
        for other in others:
            other.kill()
            other.wait()
        transport.close()
