"""torchvision's operators without its package, and what the image handlers do in place of its transforms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from marsmith_handler.image.decoding import _crop_centre, _resize
from support.long_tests import long
from support.projects import REPOSITORY
from support.vision_fixtures import photo

# On other CPUs torchvision resizes bilinearly in floats, and rounds ties to even.
ROUNDING = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1
HANDLERS = str(REPOSITORY / "handlers")
DECODE = """
import json, sys
import torch
from marsmith_handler.image import handler
from marsmith_handler.image.decoding import decode_image
body = open(sys.argv[1], "rb").read()
pixels = decode_image(body, resize=64, crop=(48, 48))
imported = [name for name in ("torchvision", "torch._dynamo") if name in sys.modules]
decoder = hasattr(torch.ops.image, "decode_jpeg")
"""


def told(tmp_path: Path, code: str, *folders: Path) -> Any:
    """Run code that prints JSON in a fresh Python that finds the handlers, and ``folders`` before anything else."""
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(photo(3, (120, 90)))
    path = json.dumps([*map(str, folders), HANDLERS])
    command = [sys.executable, "-c", f"import sys\nsys.path[:0] = {path}\n{code}", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_image_handler_starts_without_the_package_which_can_be_imported_later(tmp_path: Path) -> None:
    later = """
import torchvision
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]
again = decode_image(body, resize=64, crop=(48, 48))
print(json.dumps([imported, decoder, torch.equal(pixels, again)]))
"""
    assert told(tmp_path, DECODE + later) == [[], True, True]


def test_torchscript_with_its_operators_runs_without_the_package(tmp_path: Path) -> None:
    scripted = torch.jit.script(_suppress)
    torch.jit.save(scripted, str(tmp_path / "nms.pt"))
    code = f"""
import json, sys
import torch
from marsmith_handler.image import handler
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]])
kept = torch.jit.load({str(tmp_path / "nms.pt")!r})(boxes, torch.tensor([0.5, 0.9, 0.1]))
print(json.dumps([kept.tolist(), "torchvision" in sys.modules]))
"""
    assert told(tmp_path, code) == [[1, 2], False]


def _suppress(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    kept: torch.Tensor = torch.ops.torchvision.nms(boxes, scores, 0.5)
    return kept


@pytest.mark.parametrize(
    "library", [pytest.param(None, marks=long("export"), id="elsewhere"), pytest.param("image.so", id="broken")]
)
def test_where_its_libraries_do_not_load_the_package_is_asked_and_pillow_decodes(
    tmp_path: Path, library: str | None
) -> None:
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    define = 'import torch\ntorch.library.define("torchvision::nms", "(Tensor b, Tensor s, float t) -> Tensor")\n'
    (package / "__init__.py").write_text(define)
    if library:
        (package / library).write_bytes(b"no library")
    printed = "print(json.dumps([imported, decoder, list(pixels.shape)]))"
    assert told(tmp_path, DECODE + printed, package.parent) == [["torchvision"], False, [3, 48, 48]]


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    mode=st.sampled_from([v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC]),
    seed=st.integers(0, 1000),
)
def test_sizes_and_crops_are_those_of_torchvision(
    height: int,
    width: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    mode: v2.InterpolationMode,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    resized = _resize(pixels, size, mode.value)
    wanted = v2.functional.resize(pixels, list(size), interpolation=mode, antialias=True)
    assert int((resized.int() - wanted.int()).abs().max()) <= ROUNDING
    assert torch.equal(_crop_centre(resized, crop), v2.functional.center_crop(resized, list(crop)))
