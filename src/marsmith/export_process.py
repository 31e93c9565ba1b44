"""An export in a process of its own.

TorchScript numbers the types that a process has seen (``___torch_mangle_3``), recipes change global state (seeds,
default dtypes), and memory that torch took is not given back. A fresh process gives the same bytes however often it is
called.

The child reads one request as JSON from stdin and writes one JSON object a line to stdout: steps, then a product or an
error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from marsmith.errors import ExportError


@dataclass(frozen=True)
class ExportRequest:
    """What one export is made from.

    Attributes:
        recipe: path of the recipe.
        export: the spec's export block.
        weights: see ``weights.load_weights``.
        examples: paths of encoded images.
        root: what relative weight paths start from.
        folder: where the file goes.
    """

    recipe: str
    export: dict[str, Any]
    weights: str
    examples: list[str]
    root: str
    folder: str


@dataclass(frozen=True)
class ExportProduct:
    """What one export gave: see ``torchscript_export.TorchScriptProduct``."""

    staged: str
    report: dict[str, Any]
    labels: dict[str, str]
    files: list[str]


def export_apart(request: ExportRequest, on_step: Callable[[str], None]) -> ExportProduct:
    """Run the export in a child process and pass its steps on.

    Raises:
        ExportError: the child's own error, or it died.
    """
    command = [sys.executable, "-m", "marsmith.export_process"]
    # The child must find the same marsmith, however this process found it.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, encoding="utf-8"
    ) as child:
        if child.stdin is None or child.stdout is None:
            raise ExportError("the export process has no pipes")
        try:
            child.stdin.write(json.dumps(asdict(request)))
            child.stdin.close()
        except BrokenPipeError:
            pass
        product = _follow(child.stdout, on_step)
    if product is None:
        ended = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise ExportError(f"the export process ended without a result ({ended})", tip="its last words stand above")
    return product


def _follow(messages: IO[str], on_step: Callable[[str], None]) -> ExportProduct | None:
    product = None
    for line in messages:
        message = json.loads(line)
        if "step" in message:
            on_step(message["step"])
        elif "error" in message:
            raise ExportError(message["error"], tip=message["tip"])
        else:
            product = ExportProduct(**message["product"])
    return product


def _child() -> int:
    request = ExportRequest(**json.load(sys.stdin))
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What a recipe prints is no message.
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        print(json.dumps(message), file=messages, flush=True)

    from marsmith.formats.model_spec import ExportSpec
    from marsmith.torchscript_export import export_torchscript

    try:
        product = export_torchscript(
            Path(request.recipe),
            ExportSpec.model_validate(request.export),
            request.weights,
            [Path(path).read_bytes() for path in request.examples],
            Path(request.root),
            Path(request.folder),
            lambda step: send(step=step),
        )
    except ExportError as error:
        send(error=error.message, tip=error.tip)
        return 1
    files = [str(path) for path in product.files]
    send(product=asdict(ExportProduct(str(product.staged), product.report, product.labels, files)))
    return 0


if __name__ == "__main__":
    sys.exit(_child())
