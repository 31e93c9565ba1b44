"""Decoding of pictures: the stock way (Pillow, then float transforms) against marsmith_handler/image/decoding.py.

Run: python benchmarks/decoding.py [--rounds 40] [--threads 1] [--json]

Both ways start from the same bytes. The stock way ends with a normalised float tensor, ours with a uint8 tensor, which
the model normalises. They take turns, so that other work on the machine hurts both alike; figures are medians, in
milliseconds per picture.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[1] / "handlers"))
from marsmith_handler.image.decoding import decode_image

RESIZE, CROP = 256, 224


@dataclass(frozen=True)
class Result:
    """Medians of one kind of picture, in milliseconds, and how many times faster ours is."""

    picture: str
    stock_ms: float
    ours_ms: float
    ratio: float


def stock(body: bytes) -> torch.Tensor:
    """What TorchServe's image_classifier does with one picture."""
    steps = [transforms.Resize(RESIZE), transforms.CenterCrop(CROP), transforms.ToTensor()]
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    result: torch.Tensor = transforms.Compose([*steps, normalise])(Image.open(io.BytesIO(body)).convert("RGB"))
    return result


def ours(body: bytes, *, dct_scaling: bool = False) -> torch.Tensor:
    """What the handlers of this project do with one picture."""
    return decode_image(body, resize=RESIZE, crop=(CROP, CROP), dct_scaling=dct_scaling)


def photo(width: int, height: int, kind: str) -> bytes:
    """A colour photo of that size, in pixels, as a file."""
    out = io.BytesIO()
    pixels = data.coffee()  # type: ignore[no-untyped-call]
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    image.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return out.getvalue()


def milliseconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def compare(picture: str, body: bytes, rounds: int, *, dct_scaling: bool = False) -> Result:
    """Let both take turns for some rounds, after three that do not count."""
    pairs = [
        (milliseconds(lambda: stock(body)), milliseconds(lambda: ours(body, dct_scaling=dct_scaling)))
        for _ in range(rounds + 3)
    ][3:]
    stock_ms, ours_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Result(picture, round(stock_ms, 2), round(ours_ms, 2), round(stock_ms / ours_ms, 2))


def machine() -> dict[str, str | int]:
    """Where the figures come from."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(": ")[2] if names else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": f"{cpu} ({capability})", "cores": os.cpu_count() or 1, "torch": torch.__version__}


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="timed rounds per picture")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads inside one operation")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    small, large = photo(640, 480, "JPEG"), photo(1920, 1280, "JPEG")
    results = [
        compare("JPEG 640x480", small, args.rounds),
        compare("JPEG 1920x1280", large, args.rounds),
        compare("JPEG 1920x1280, dct_scaling", large, args.rounds, dct_scaling=True),
        compare("PNG 640x480", photo(640, 480, "PNG"), args.rounds),
    ]
    if args.json:
        print(json.dumps({"machine": machine(), "results": [asdict(result) for result in results]}))
        return
    print("  ".join(f"{key} {value}" for key, value in {**machine(), "threads": args.threads}.items()))
    print(f"{'picture':28} {'stock ms':>9} {'ours ms':>9} {'ratio':>6}")
    for result in results:
        print(f"{result.picture:28} {result.stock_ms:9.2f} {result.ours_ms:9.2f} {result.ratio:6.2f}")


if __name__ == "__main__":
    main()
