"""What a host reads of an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marsmith.errors import UsageError
from marsmith.host.version import Wishes, gpus_of, opened
from support.host_server import light_archive


@pytest.mark.parametrize(
    ("config", "count", "gpus"),
    [
        ({}, 0, ()),
        ({}, 2, (0, 1)),
        ({"deviceIds": [1]}, 2, (1,)),
        ({"deviceIds": [0, 2]}, 2, (0, 1)),
        ({"deviceIds": "1"}, 2, (0, 1)),
        ({"deviceType": "cpu"}, 2, ()),
    ],
)
def test_workers_get_the_gpus_of_their_model_config(config: dict[str, Any], count: int, gpus: tuple[int, ...]) -> None:
    assert gpus_of(config, count) == gpus


def test_the_command_line_goes_before_the_model_config(tmp_path: Path) -> None:
    archive = light_archive(tmp_path / "light.mar", minWorkers=3, jobQueueSize=7)
    with opened(archive, Wishes()) as plain, opened(archive, Wishes(1, 2, 5)) as wished:
        assert (plain.workers, plain.batch_size, plain.queue_size) == (3, 4, 7)
        assert (wished.workers, wished.batch_size, wished.queue_size) == (1, 2, 5)
        # The handler divides the cores by it.
        assert wished.config["minWorkers"] == 1
        assert plain.unproved == ("digests", "examples")
        assert plain.is_idempotent


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--batch 0"):
        Wishes(batch_size=0)
