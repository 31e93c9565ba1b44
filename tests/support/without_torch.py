"""`pytest --without-torch`: a test that imports torch fails. `make test-fast` starts in a second because none does."""

from __future__ import annotations

import sys

import pytest

HAD_TORCH = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.addoption("--without-torch", action="store_true", help="let a test fail if it imports torch")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note whether somebody has imported torch before: only the first one is to blame."""
    item.stash[HAD_TORCH] = "torch" in sys.modules


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Refuse a test that has imported torch."""
    if item.config.getoption("--without-torch") and "torch" in sys.modules and not item.stash[HAD_TORCH]:
        pytest.fail("torch was imported: mark the test with `tensors`")
