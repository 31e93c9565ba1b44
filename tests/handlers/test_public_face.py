"""``from marsmith_handler import ...``: its names, what importing it costs, and arrays in place of tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import marsmith_handler
from marsmith_handler.devices import as_tensor, stack_on
from support.handler_fixtures import Worker, write_manifest, write_model
from support.projects import REPOSITORY

FACE = """
import sys
from marsmith_handler import BaseHandler, ItemError, Reply, Request
assert BaseHandler and ItemError and Reply and Request
print("torch" in sys.modules or "PIL" in sys.modules)
"""


def test_importing_the_public_names_imports_no_torch() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "handlers"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", FACE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_public_names_are_those_of_their_modules_and_no_others() -> None:
    from marsmith_handler import BaseHandler, ItemError, Reply, Request, base, errors, replies, request

    assert (BaseHandler, ItemError) == (base.BaseHandler, errors.ItemError)
    assert (Reply, Request) == (replies.Reply, request.Request)
    assert set(marsmith_handler.__all__) <= set(dir(marsmith_handler))
    with pytest.raises(AttributeError, match="has no attribute 'Handler'"):
        _ = marsmith_handler.Handler


# Both ends in numpy: decode gives arrays, and infer, where it is overridden, gives one.
HANDLER = """
import numpy as np

from marsmith_handler import BaseHandler, ItemError, Reply, Request


class ArrayHandler(BaseHandler):
    def decode(self, request: Request) -> np.ndarray:
        numbers = np.frombuffer(request.as_bytes(), "<f4")  # read-only, as numpy makes it
        if not numbers.any():
            raise ItemError(422, "UnprocessableContent", "nothing but zeros")
        return numbers[::-1]

    {infer}

    def encode(self, result, request: Request):
        return Reply(result.astype("<f4").tobytes()) if isinstance(result, np.ndarray) else result.tolist()
"""
OWN_INFER = "def infer(self, items):\n        return np.stack(items) * 2"


class Doubling(torch.nn.Module):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return 2 * numbers


@pytest.mark.parametrize("infer", ["", OWN_INFER], ids=["inherited", "own"])
def test_decode_and_infer_may_give_numpy_arrays(tmp_path: Path, infer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    write_model(folder, Doubling())
    name = f"array_{'own' if infer else 'inherited'}_handler.py"
    (folder / name).write_text(HANDLER.format(infer=infer))
    write_manifest(folder, name)
    monkeypatch.syspath_prepend(folder)
    (folder / "model-config.yaml").write_text(json.dumps({"handler": {"warm_up_s": 0.01}}))
    bodies = [np.array(row, "<f4").tobytes() for row in ([1, 2], [3, 4])]
    first, zeros, second = Worker(folder, name).send(bodies[0], bytes(8), bodies[1])
    assert zeros.status == 422
    read: Any = (lambda body: np.frombuffer(body, "<f4").tolist()) if infer else json.loads
    assert [read(first.body), read(second.body)] == [[4, 2], [8, 6]]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.uint8)[::-2],
        np.arange(3, dtype=">i4"),
        np.frombuffer(b"\x01\x02", np.uint8),
        np.array(True),
        np.float32(0.5),
    ],
    ids=["plain", "negative stride", "big-endian", "read-only", "no axes", "scalar"],
)
def test_any_array_of_numbers_becomes_the_same_tensor(array: Any) -> None:
    assert as_tensor(array).tolist() == array.tolist()
    assert stack_on([array, array], torch.device("cpu")).tolist() == [array.tolist()] * 2
