"""Ray Serve: one replica a worker, requests through ``serve.batch``, access log off.

``option``: ``throughput`` sets RAY_SERVE_THROUGHPUT_OPTIMIZED, which has to be in the environment before Ray starts.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from peer_servers.peer_model import VARIABLE, PeerModel, read_settings

settings = read_settings()


@serve.deployment
class Classifier:
    """Takes a photo as the raw body."""

    def __init__(self) -> None:
        self.model = PeerModel(read_settings())

    @serve.batch(max_batch_size=settings.batch_size, batch_wait_timeout_s=settings.timeout_ms / 1000)
    async def classify(self, bodies: list[bytes]) -> list[dict[str, float]]:
        """Answer a batch."""
        return self.model.classify(bodies)

    async def __call__(self, request: Any) -> Any:
        """Answer one request, in whatever batch it comes."""
        return await self.classify(await request.body())


def main() -> None:
    """Serve until ended."""
    variables = {name: os.environ[name] for name in (VARIABLE, "PYTHONPATH")}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # More CPUs than there are: the controller and the proxy claim some, and replicas must find room.
        ray.init(
            num_cpus=settings.workers * settings.threads + 2,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": variables},
        )
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=settings.port))
        deployment: Any = Classifier.options(  # type: ignore[attr-defined]
            num_replicas=settings.workers,
            max_ongoing_requests=100,
            ray_actor_options={"num_cpus": settings.threads},
            logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        )
        serve.run(deployment.bind(), route_prefix="/predict")
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        ended.wait()
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


if __name__ == "__main__":
    main()
