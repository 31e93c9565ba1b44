"""What the host tells about its models: TorchServe's description, and the metadata of KServe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marsmith import __version__
from marsmith.host.pool import Pool


def models(pools: Sequence[Pool]) -> dict[str, Any]:
    """Return the list of models: the default version of each."""
    return {"models": [{"modelName": pool.version.id.name, "modelUrl": pool.version.archive.name} for pool in pools]}


def described(pool: Pool, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return TorchServe's description of a version; with ``facts``, what its handler says about itself."""
    version, status = pool.version, pool.status()
    workers = [
        {
            "id": str(9000 + place),
            "startTime": "",
            "status": "READY" if ready else "UNLOADING",
            "memoryUsage": memory,
            "pid": pid,
            "gpu": False,
            "gpuUsage": "N/A",
        }
        for place, (pid, ready, memory) in enumerate(status.workers)
    ]
    return {
        "modelName": version.id.name,
        "modelVersion": version.id.version,
        "modelUrl": version.archive.name,
        "runtime": "python",
        "minWorkers": version.workers,
        "maxWorkers": version.workers,
        "batchSize": version.batch_size,
        "maxBatchDelay": version.delay_ms,
        "responseTimeout": version.content.response_timeout_s,
        "startupTimeout": version.content.startup_timeout_s,
        "loadedAtStartup": True,
        "workers": workers,
        "jobQueueStatus": {
            "remainingCapacity": max(0, version.queue_size - status.waiting),
            "pendingRequests": status.waiting,
        },
        **({"customizedMetadata": dict(facts)} if facts is not None else {}),
    }


def server_metadata() -> dict[str, Any]:
    """Return KServe's metadata of the server."""
    return {"name": "marsmith", "version": __version__, "extensions": ["binary_tensor_data"]}


def model_metadata(pools: Sequence[Pool]) -> dict[str, Any]:
    """Return KServe's metadata of a model. Inputs have any shape: the handler decodes them itself."""
    return {
        "name": pools[0].version.id.name,
        "versions": [pool.version.id.version for pool in pools],
        "platform": "marsmith",
        "inputs": [],
        "outputs": [],
    }
