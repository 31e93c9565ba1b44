"""How the servers of these tests run."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def workers(request: pytest.FixtureRequest) -> None:
    """Start workers without torch, unless the module is about tensors or about a server exactly as users have it."""
    if request.node.get_closest_marker("tensors") is None:
        request.getfixturevalue("light_workers")
