"""Cases that `make test-long` runs: repeats and matrices of which `make test` runs one representative."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar

import pytest

# One run of `make test-long PART=...` each; each takes less than 20 minutes on 2 cores.
Part = Literal["kills", "export", "requests", "servers", "setup", "monitor", "batch", "host"]
T = TypeVar("T")


def long(part: Part) -> pytest.MarkDecorator:
    """Return the mark of a test that only `make test-long` runs."""
    return pytest.mark.long(part=part)


def mostly_long(part: Part, values: Iterable[T], keep: Collection[T], ids: Mapping[T, str] | None = None) -> list[Any]:
    """Return parameters of which `make test` runs those in ``keep``, and `make test-long` the others.

    Args:
        part: where the others run.
        values: all of them; a tuple gives several arguments.
        keep: some of them.
        ids: how those are called that pytest finds no good name for.
    """
    every = list(values)
    assert all(each in every for each in keep), "a case that is to be kept is not there"

    def parameter(value: T) -> Any:
        arguments = value if isinstance(value, tuple) else (value,)
        marks = () if value in keep else (long(part),)
        return pytest.param(*arguments, marks=marks, id=ids[value] if ids else None)

    return [parameter(value) for value in every]
