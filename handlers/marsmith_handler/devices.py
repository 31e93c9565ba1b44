"""Device and threads of a worker."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
# Root of the container's control group, in both versions.
CGROUP = Path("/sys/fs/cgroup")
MOST_DECODE_THREADS = 8


@dataclass(frozen=True)
class Placement:
    """Device and threads of a worker.

    Attributes:
        device: device of the model.
        threads: torch's threads for one operation on the CPU.
        decode_threads: threads that decode the items of a batch, one item each.
    """

    device: torch.device
    threads: int
    decode_threads: int


def choose_placement(
    gpu_id: Any, model_config: Mapping[str, Any], threads: int | None, decode_threads: int | None
) -> Placement:
    """Choose device and threads for this worker; numbers that are not None are used unchanged."""
    device = choose_device(gpu_id)
    share = max(1, available_cores() // worker_count(model_config))
    threads = threads or share
    # If the model is on a GPU, the cores are free for decoding.
    return Placement(
        device, threads, decode_threads or min(share if device.type == "cuda" else threads, MOST_DECODE_THREADS)
    )


def set_threads(placement: Placement) -> ThreadPoolExecutor | None:
    """Set torch's threads, and return the pool for decoding; None if one thread decodes.

    The items are split among the pool's threads, so within one item torch gets a single thread.
    """
    import torch

    count = placement.decode_threads
    pool = None
    if count > 1:
        pool = ThreadPoolExecutor(count, "decode", use_one_thread)
        # All threads must have started before torch's own number is set: each start sets it for MKL as a whole.
        gate = threading.Barrier(count)
        for started in [pool.submit(gate.wait) for _ in range(count)]:
            started.result()
    torch.set_num_threads(placement.threads)
    return pool


def use_one_thread() -> None:
    """Set torch to one thread, in the thread that calls."""
    import torch

    torch.set_num_threads(1)
    # A thread reads the number at its first use of torch: this must happen now, while the number is 1.
    torch.get_num_threads()


def choose_device(gpu_id: Any) -> torch.device:
    """Return the GPU that TorchServe has given this worker, or the CPU if it gave none or there is none."""
    import torch

    if gpu_id is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        logger.warning("TorchServe gave this worker GPU %s, and torch sees none: it runs on the CPU", gpu_id)
        return torch.device("cpu")
    device = torch.device("cuda", int(gpu_id))
    torch.cuda.set_device(device)
    return device


def available_cores() -> int:
    """Return the number of cores that this process may use, by affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((CGROUP / name).read_text(encoding="ascii") for name in files).split()
        except (OSError, ValueError):
            continue
        # Without a limit the quota is max, or -1.
        return max(1, min(cores, math.floor(int(quota) / int(period)))) if quota.isdigit() else cores
    return cores


def worker_count(config: Mapping[str, Any]) -> int:
    """Return how many workers of this version TorchServe starts on this machine: ``minWorkers`` of its model config."""
    count = config.get("minWorkers")
    return count if isinstance(count, int) and count > 0 else 1


def inference_mode() -> AbstractContextManager[Any]:
    """Return torch's inference mode, in which operations record no gradients."""
    import torch

    return torch.inference_mode()


def as_tensor(item: Any) -> torch.Tensor:
    """Return a tensor unchanged, and a numpy array as a tensor, which shares its memory if torch can."""
    import torch

    if isinstance(item, np.ndarray):
        # torch refuses negative strides and foreign byte orders, and warns about memory that is read-only.
        item = np.require(item, item.dtype.newbyteorder("="), ["C", "W"])
    return torch.as_tensor(item)


def stack_on(items: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Stack tensors or numpy arrays of one shape and dtype on the device; for a GPU through pinned memory."""
    import torch

    tensors = [as_tensor(item) for item in items]
    if device.type != "cuda":
        return torch.stack(tensors)
    shape = (len(tensors), *tensors[0].shape)
    pinned = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=True)
    return torch.stack(tensors, out=pinned).to(device, non_blocking=True)
