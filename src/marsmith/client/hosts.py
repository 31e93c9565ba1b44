"""Host names: whether a host is this machine, which is reached without a proxy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def is_loopback(host: str) -> bool:
    """Return whether ``host``, a name or an address, is a loopback address."""
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    return address.is_loopback if address else name == "localhost" or name.endswith(".localhost")


def is_this_machine(host: str) -> bool:
    """Return whether connections to ``host`` stay on this machine; the unspecified address leads to the loopback."""
    address = _address(host.strip("[]"))
    return is_loopback(host) or (address is not None and address.is_unspecified)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def host_of(address: str) -> str:
    """Return the host of ``host:port``, ``[::1]:port`` or an address without a port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address
