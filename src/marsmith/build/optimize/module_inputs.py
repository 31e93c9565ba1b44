"""Record the tensors that an archive's own handler passes to its module. Imports torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from marsmith.build.optimize import recorder
from marsmith.child_processes import temporary_folder
from marsmith.errors import ExportError
from marsmith.runtime.runner import Request, Runner
from marsmith.runtime.worker import Process, start_python


@dataclass(frozen=True)
class _RecordingLaunch:
    """Starts a worker that records the inputs of its module."""

    code: Path
    folder: Path
    file: str

    def __call__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Process:
        path = os.pathsep.join([str(self.code), environment.get("PYTHONPATH", "")])
        record = {recorder.FOLDER: str(self.folder), recorder.FILE: self.file}
        return start_python(command, folder, {**environment, **record, "PYTHONPATH": path})


def module_inputs(archive: Path, serialized_file: str, requests: Sequence[Request]) -> list[torch.Tensor]:
    """Send requests to an archive's handler; return the module's inputs, one tensor per request, without the batch.

    Args:
        archive: an unpacked archive.
        serialized_file: name of the serialized file.
        requests: requests, sent one by one.

    Raises:
        HandlerError: the handler does not load.
        ExportError: the handler refuses a request, or its module gets something else than one float32 image per
            request.
    """
    with temporary_folder("marsmith-") as scratch:
        code, folder = scratch / "code", scratch / "inputs"
        code.mkdir()
        folder.mkdir()
        shutil.copy(recorder.__file__, code / "sitecustomize.py")
        launch = _RecordingLaunch(code, folder, serialized_file)
        found = []
        with Runner(archive, batch_size=1, launch=launch) as runner:
            for path in folder.iterdir():  # Inputs of the warm-up.
                path.unlink()
            for request in requests:
                (reply,) = runner.run([request])
                found.append(_given(folder, reply.status, runner.last_traceback or reply.body[:300].decode("latin-1")))
    shapes = {tuple(tensor.shape) for tensor in found}
    if len(shapes) > 1:
        raise ExportError(f"the handler gives its module images of different sizes: {sorted(shapes)}")
    return found


def _given(folder: Path, status: int, reason: str) -> torch.Tensor:
    if status >= 400:
        raise ExportError(
            f"the old archive answers an example with status {status}: {reason.rstrip()}",
            tip="give images that it can answer: --examples DIR",
        )
    files = sorted(folder.iterdir())
    if len(files) != 1 or files[0].name == recorder.NOT_ONE_TENSOR:
        raise ExportError(
            "the handler does not call its module once a request with one tensor",
            tip="optimize supports no other modules",
        )
    tensor: torch.Tensor = torch.load(files[0], weights_only=True)
    files[0].unlink()
    if tensor.dtype != torch.float32 or tensor.ndim != 4 or tensor.shape[:2] != (1, 3):
        seen = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        raise ExportError(f"the handler gives its module {seen}; optimize supports images, float32 (N, 3, H, W)")
    return tensor[0]
