"""What faults do to a client, where no server is needed to see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsmith.client.http import Transport
from marsmith.client.key_file import read_key_file
from marsmith.client.retries import Failure, kind_of
from marsmith.client.tokens import TokenSource
from marsmith.errors import ConnectionFailedError


def test_a_token_that_is_due_while_the_server_is_away_is_waited_for_like_the_server(tmp_path: Path) -> None:
    key_file = tmp_path / "key_file.json"
    entry = {"key": "abcdefgh", "expiration time": "2020-01-01T00:00:00Z"}
    key_file.write_text(json.dumps({"inference": entry, "management": entry, "API": {"key": "12345678"}}))
    source = TokenSource(key_file, Transport(), "http://127.0.0.1:9")
    with pytest.raises(ConnectionFailedError) as nobody_listens:
        source.get("inference")
    source._known = read_key_file(key_file)
    # As `marsmith serve` does before it starts the next one.
    key_file.unlink()
    with pytest.raises(ConnectionFailedError) as gone:
        source.get("inference")
    assert kind_of(nobody_listens.value) == kind_of(gone.value) == Failure.UNREACHABLE
