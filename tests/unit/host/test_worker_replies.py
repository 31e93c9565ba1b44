"""Replies of a handler that HTTP or a frame cannot carry."""

from __future__ import annotations

from typing import Any

import pytest

from marsmith.host.worker.serve import BatchError, _bodies, _head


@pytest.mark.parametrize(("status", "headers"), [(200, {}), (599, {"X-A": "b c\t\xe9"}), (204, {"x!": ""})])
def test_what_http_allows_goes_out(status: int, headers: dict[str, str]) -> None:
    assert _head(status, headers) == {"status": status, "headers": headers}


@pytest.mark.parametrize(
    ("status", "headers", "named"),
    [
        (99999, {}, "99999"),
        (100, {}, "100"),
        ("200", {}, "'200'"),
        (200, {"X-A": "a\r\nSet-Cookie: b"}, "X-A"),
        (200, {"X A": "a"}, "X A"),
        (200, {"": "a"}, "''"),
        (200, {"X-A": "\x00"}, "X-A"),
    ],
)
def test_what_http_does_not_allow_fails_only_its_request(status: Any, headers: dict[str, str], named: str) -> None:
    code, told, _ = _head(status, headers)["failed"]
    assert code == 500
    assert named in told


def circular() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize("reply", ["\ud800", circular(), {1}, {b"a": 1}], ids=["surrogate", "circular", "set", "key"])
def test_a_reply_that_has_no_bytes_fails_the_batch_and_not_the_worker(reply: Any) -> None:
    with pytest.raises(BatchError, match="Unsupported model output data type"):
        _bodies([reply], 1)
