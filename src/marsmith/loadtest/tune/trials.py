"""Measurements of set-ups: batches in workers without a server, and load on a live server."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from marsmith import run_state
from marsmith.client.blocking_client import Client
from marsmith.config.server_config import model_store
from marsmith.errors import ClientError, MarsmithError
from marsmith.inputs import Input
from marsmith.loadtest.bench import Load, http_target, run_load
from marsmith.loadtest.measurement import Measurement
from marsmith.loadtest.tune.search import Trial, TrialLoad
from marsmith.loadtest.tune.setup import Placement, ServiceTime, Setup
from marsmith.loadtest.tune.variant import VariantMaker
from marsmith.project import Project
from marsmith.runtime.runner import Request, Runner

WARM_UP_S = 0.5
REPEATS = 5
# TorchScript specialises in the second run of a new size.
UNTIMED = 3
# Every size is warmed up when it is measured. A longer warm-up of a slow model would exceed its measurement.
WARM_UP_OF_WORKERS_S = 0.1
# Time limit of one placement; long batches are repeated less often.
MEASURING_LIMIT_S = 6.0


def measure_service_time(
    maker: VariantMaker, placement: Placement, inputs: Sequence[Input], batch_sizes: Sequence[int], scratch: Path
) -> ServiceTime:
    """Measure the time of a batch in one worker while the other workers of the placement are busy.

    Raises:
        HandlerError: the handler does not load with this many workers.
    """
    setup = Setup(placement, max(batch_sizes), 1)
    archive = maker.write(setup, scratch / f"{setup.version}.mar", warm_up_s=WARM_UP_OF_WORKERS_S)
    requests = [Request(item.body, item.content_type) for item in inputs]
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(archive)) for _ in range(placement.workers)]
        pool = stack.enter_context(ThreadPoolExecutor(placement.workers))
        stopped = threading.Event()

        def stop() -> None:
            """Stop the threads, because the pool waits for them. This wait may be interrupted."""
            stopped.set()
            for runner in runners:
                runner.cut()

        stack.callback(stop)
        seconds: dict[int, float] = {}
        spent = 0.0
        for size in batch_sizes:
            batch = [requests[index % len(requests)] for index in range(size)]
            if spent > MEASURING_LIMIT_S:
                break
            runs = pool.map(lambda runner, b=batch: _times(runner, b, stopped), runners)
            took = [each for one in runs for each in one]
            seconds[size] = statistics.median(took)
            spent += sum(took) / placement.workers
    archive.unlink()
    return ServiceTime(seconds)


def _times(runner: Runner, batch: Sequence[Request], stopped: threading.Event) -> list[float]:
    took = []
    for _ in range(UNTIMED + REPEATS):
        if stopped.is_set():
            break
        runner.run(batch)
        took.append(runner.last_batch_ms / 1000)
    return took[UNTIMED:]


class LiveTrials:
    """Tries set-ups on a server. Each is registered once, and stays registered until it is eliminated."""

    def __init__(self, server: Project, makers: Sequence[VariantMaker], inputs: Sequence[Input]) -> None:
        """Prepare trials on the server of that project."""
        self._server = server
        self._state = run_state.read(server)
        self._makers = makers
        self._inputs = inputs
        self._registered: set[Setup] = set()
        self._client = Client.of(self._state, deadline_s=120)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def warm_up(self, setup: Setup, seconds: float) -> None:
        """Put load on the server for some seconds: the JVM compiles meanwhile, at no trial's expense."""
        # The trial of the set-up reports its errors.
        with suppress(MarsmithError):
            self.register(setup)
            clients = 2 * setup.placement.workers * setup.batch_size
            self.load(setup, Load(clients=clients, seconds=seconds, warm_up_s=0.0))

    def attempt(self, setup: Setup, offer: TrialLoad) -> Trial:
        """Try a set-up. A failure is returned as part of the result."""
        try:
            self.register(setup)
            load = Load(rps=offer.rate, seconds=offer.seconds, warm_up_s=WARM_UP_S, seed=offer.seed)
            measured = self.load(setup, load)
        except MarsmithError as error:
            return Trial(setup, offer.seconds, 0.0, float("nan"), reason=error.message)
        return Trial(setup, offer.seconds, measured.requests_per_second, measured.p99_ms, measured.failed)

    def load(self, setup: Setup, load: Load) -> Measurement:
        """Put a load on a registered set-up."""
        model = self._makers[setup.placement.archive].model_name
        return run_load(http_target(self._state, model, setup.version, self._inputs), load)

    def register(self, setup: Setup) -> None:
        """Register a set-up if it is not registered, and wait until its workers are ready."""
        if setup in self._registered:
            return
        file = f"{setup.version}.mar"
        self._makers[setup.placement.archive].write(setup, model_store(self._server) / file)
        self._client.register(file)
        self._registered.add(setup)

    def drop(self, setup: Setup) -> None:
        """Unregister a set-up and delete its archive."""
        if setup not in self._registered:
            return
        model = self._makers[setup.placement.archive].model_name
        self._registered.discard(setup)
        try:
            self._client.unregister(model, setup.version)
        except ClientError:
            # TorchServe unregisters the default version only as the last one, so it stays registered and idle.
            return
        (model_store(self._server) / f"{setup.version}.mar").unlink(missing_ok=True)
