"""A worker of a batch: a process that reads, decodes, infers and writes whole shards, one after the other.

``marsmith.scoring.workers`` starts it as ``python -m marsmith.scoring.worker FD``, with one end of a pipe. It gets its
setup, then a shard at a time. It tells which batch it begins, so that the other side knows what killed it.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from marsmith.errors import MarsmithError
from marsmith.file_errors import access_error
from marsmith.quick_exit import run_and_exit
from marsmith.scoring.destination import Destination, open_destination
from marsmith.scoring.engine import Engine, WorkerLostError, open_engine
from marsmith.scoring.messages import Channel, WorkerSetup
from marsmith.scoring.parts import encode_part, part_name, read_part
from marsmith.scoring.plan import shard_items
from marsmith.scoring.score import score_shard


def _work(channel: Channel) -> int:
    setup = WorkerSetup.parse(channel.receive())
    settings = setup.plan.settings
    to = _destination(setup.to, setup.temporary)
    quarantine = _destination(setup.quarantine, setup.quarantine_temporary) if setup.quarantine else None
    options = {"batch_size": settings.batch_size, "threads": settings.threads, "gpu_id": setup.gpu_id}
    with open_engine(Path(setup.folder), **options) as engine:  # type: ignore[arg-type]
        channel.send(ready=True)
        while True:
            try:
                job = channel.receive()
            except EOFError:
                return 0
            _score(channel, setup, job, engine, to, quarantine)


def _score(
    channel: Channel,
    setup: WorkerSetup,
    job: dict[str, Any],
    engine: Engine,
    to: Destination,
    quarantine: Destination | None,
) -> None:
    plan, shard = setup.plan, job["shard"]
    rows = score_shard(
        engine,
        shard_items(Path(setup.keys), plan, shard),
        job["batches"],
        dead={int(at): reason for at, reason in job["dead"].items()},
        root=Path(setup.root),
        content_type=plan.settings.content_type,
        on_batch=lambda batch: channel.send(batch=list(batch)),
        on_done=lambda count: channel.send(done=count),
        quarantine=quarantine,
    )
    content = encode_part(rows, plan)
    name = part_name(shard)
    if not to.create(name, content):
        # Another batch of the same plan was faster.
        content = to.read(name)
    record = read_part(name, content, plan, to.address)
    channel.send(shard=shard, sha256=record.sha256, statuses=dict(record.statuses))


def _destination(address: str, temporary: str | None) -> Destination:
    return open_destination(address, Path(temporary) if temporary else None)


def _main() -> int:
    # The batch ends its workers; signals to the whole group are meant for it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(Connection(int(sys.argv[1])))
    try:
        return _work(channel)
    except WorkerLostError as error:
        channel.send(lost=str(error))
    except MarsmithError as error:
        channel.send(error=error.message, tip=error.tip)
    except BrokenPipeError:
        # Nobody waits for a part any more.
        return 1
    except OSError as error:
        refused = access_error(error)
        if refused is None:
            raise
        channel.send(error=refused.message, tip=refused.tip)
    return 1


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    run_and_exit(_main)
