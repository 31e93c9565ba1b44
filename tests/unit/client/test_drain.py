"""When a version counts as drained, decided without a server; and which version `marsmith unregister` means."""

from __future__ import annotations

import pytest

from marsmith.cli.unregister import version_to_unregister
from marsmith.client.blocking_client import VersionStatus, Worker
from marsmith.client.drain import Evidence, next_step, quiet_period_s
from marsmith.errors import NotFoundError, UsageError


def status(
    *pids: int, pending: int = 0, starting: int = 0, version: str = "1.0", default: bool = True
) -> VersionStatus:
    ready = [Worker(f"{pid}", pid, "READY", False, 0, "") for pid in pids]
    others = [Worker("x", 0, "UNLOADING", False, 0, "") for _ in range(starting)]
    return VersionStatus(
        model_name="m",
        model_version=version,
        default=default,
        archive_url=f"m-{version}.mar",
        min_workers=1,
        max_workers=1,
        batch_size=1,
        max_batch_delay_ms=500,
        response_timeout_s=20,
        startup_timeout_s=60,
        workers=(*ready, *others),
        queue_remaining=100 - pending,
        queue_pending=pending,
    )


def evidence(*answered: int, anonymous: bool = False, quiet_s: float = 0.0) -> Evidence:
    return Evidence(frozenset(answered), anonymous, quiet_s)


def test_a_version_is_drained_when_every_ready_worker_has_answered_a_probe() -> None:
    assert next_step(status(1, 2), evidence()) == "probe"
    assert next_step(status(1, 2), evidence(1)) == "probe"
    assert next_step(status(1, 2), evidence(1, 2)) == "done"


def test_nothing_is_probed_while_requests_wait() -> None:
    assert next_step(status(1, 2, pending=1), evidence()) == "wait"
    assert next_step(status(1, 2, pending=1), evidence(1, 2)) == "wait"
    assert next_step(status(starting=1, pending=1), evidence()) == "wait"


def test_a_worker_that_was_started_in_between_must_answer_too() -> None:
    assert next_step(status(1, 3), evidence(1, 2)) == "probe"


def test_a_worker_that_is_not_ready_has_nothing_in_hand() -> None:
    assert next_step(status(starting=2), evidence()) == "done"
    assert next_step(status(1, starting=1), evidence(1)) == "done"


def test_an_answer_without_a_name_is_proof_only_where_there_is_one_worker() -> None:
    assert next_step(status(1), evidence(anonymous=True)) == "done"
    assert next_step(status(1, 2), evidence(anonymous=True)) == "wait"


def test_several_workers_that_do_not_name_themselves_get_the_response_timeout_to_end() -> None:
    assert quiet_period_s(status(1, 2)) == 21.5
    assert next_step(status(1, 2), evidence(anonymous=True, quiet_s=21.4)) == "wait"
    assert next_step(status(1, 2), evidence(anonymous=True, quiet_s=21.5)) == "done"


def test_the_default_version_is_unregistered_only_where_it_is_the_only_one() -> None:
    old, new = status(version="1.0", default=False), status(version="2.0")
    assert version_to_unregister([new], None) is new
    assert version_to_unregister([new], "2.0") is new
    assert version_to_unregister([old, new], "1.0") is old
    with pytest.raises(UsageError, match=r"m:2\.0 is the default version") as caught:
        version_to_unregister([old, new], "2.0")
    assert caught.value.tip == "set another default version first: marsmith set-default m 1.0"


def test_the_version_must_be_named_where_there_are_several() -> None:
    with pytest.raises(UsageError, match=r"which version of m\? 1\.0, 2\.0"):
        version_to_unregister([status(version="1.0", default=False), status(version="2.0")], None)
    with pytest.raises(NotFoundError, match=r"no version 3\.0"):
        version_to_unregister([status(version="1.0")], "3.0")
