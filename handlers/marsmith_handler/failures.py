"""Meaning of an exception: the item's error, whether memory ran out, and whether the process can continue."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING

from marsmith_handler.error_text import typed_line
from marsmith_handler.errors import InsufficientStorage, InternalError, ItemError, UnprocessableContent

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# After these every further call on the device fails until the process ends.
FATAL_CUDA_ERRORS = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ECC",
    "hardware stack error",
)
MESSAGE_LIMIT = 300


def item_error(error: Exception, stage: str) -> ItemError:
    """Return the error that the sender of an item gets for an exception.

    Args:
        error: exception raised while one item was processed.
        stage: ``decode``, ``infer`` or ``encode``. In decode, ValueError, LookupError and TypeError mean that the
            request is not usable. In other stages they mean that the handler failed, as any other exception does.
    """
    if isinstance(error, ItemError):
        return error
    if is_out_of_memory(error):
        return InsufficientStorage(f"out of memory in {stage}")
    text = typed_line(error)[:MESSAGE_LIMIT]
    if stage == "decode" and isinstance(error, ValueError | LookupError | TypeError):
        return UnprocessableContent(f"the request could not be decoded: {text}")
    return InternalError(f"{stage} failed: {text}")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the memory of the machine or of the device was not sufficient."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)


def is_fatal(error: Exception, device: torch.device) -> bool:
    """Return whether an exception has left the device unusable for this process."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    if any(sign in str(error) for sign in FATAL_CUDA_ERRORS):
        return True
    return device.type == "cuda" and _is_dead(device)


def leave(error: Exception) -> None:
    """End the process, so that TorchServe starts a new worker; an unusable worker would answer 507 from now on."""
    log_exception("a fatal error on the device: this worker ends, a fresh one takes its place", error)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)


def log_exception(message: str, error: Exception) -> None:
    """Log an exception in lines that TorchServe's frontend does not parse."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    logger.error("%s\n%s", printable(message), "\n".join(f"    {printable(line)}" for line in lines))


def printable(text: str) -> str:
    """Return text as one line of ASCII that the frontend does not parse.

    The frontend reads the worker's output line by line. It parses lines that begin with ``[METRICS]`` or ``[PID]``, or
    that end with the worker's start line. A request must not be able to write one.
    """
    line = text.encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)
    return line.replace("Torch worker started", "Torch worker_started")


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code != 9}


def _is_dead(device: torch.device) -> bool:
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
