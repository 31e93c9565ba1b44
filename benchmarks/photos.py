"""The requests that benchmarks send: JPEG photos of 640x480, from scikit-image.

Run: python benchmarks/photos.py FOLDER        # writes eight, for `marsmith bench` and `marsmith tune --input FOLDER`
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from skimage import data

NAMES = ("astronaut", "cat", "chelsea", "coffee", "rocket", "immunohistochemistry", "hubble_deep_field", "retina")


def photos(count: int) -> list[bytes]:
    """Return so many photos, in turn, 24 to 140 kB each."""
    bodies = []
    for number in range(count):
        stream = io.BytesIO()
        image = Image.fromarray(getattr(data, NAMES[number % len(NAMES)])()).convert("RGB")
        image.resize((640, 480)).save(stream, "JPEG", quality=90)
        bodies.append(stream.getvalue())
    return bodies


def write_photos(folder: Path) -> None:
    """Write each photo once into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in zip(NAMES, photos(len(NAMES)), strict=True):
        (folder / f"{name}.jpg").write_bytes(body)


if __name__ == "__main__":
    write_photos(Path(sys.argv[1]))
