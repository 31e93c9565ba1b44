"""Which hosts are this machine itself."""

from __future__ import annotations

import pytest

from marsmith.client.hosts import host_of, is_loopback, is_this_machine


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback_has_many_names(host: str) -> None:
    assert is_loopback(host)
    assert is_this_machine(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
def test_the_address_of_any_is_bound_for_others_and_leads_to_this_machine(host: str) -> None:
    assert not is_loopback(host)
    assert is_this_machine(host)


@pytest.mark.parametrize("host", ["127.example.org", "localhost.example.org", "10.0.0.1", "::2", "", "example.org"])
def test_other_hosts_are_elsewhere(host: str) -> None:
    assert not is_loopback(host)
    assert not is_this_machine(host)


@pytest.mark.parametrize(
    ("address", "host"),
    [("127.0.0.1:7070", "127.0.0.1"), ("[::1]:7070", "::1"), ("::1", "::1"), ("localhost:1", "localhost"), ("a", "a")],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host
