"""Photos to optimize an old archive with: given ones, its own, or those of scikit-image."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import UsageError
from marsmith.export.images import ImageSets, find_images, image_sets
from marsmith.packages import installed_version

# Photos of objects, of at least 512 x 300 pixels, in the wheel of every release of scikit-image.
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
# Number of photos in the archive, with their replies.
EXAMPLES = 3
# Number of photos that are sent to the old and to the new archive.
REQUESTS = 16


@dataclass(frozen=True)
class Photos:
    """Photos with unique names.

    Attributes:
        sets: the photos, split as for an export.
        source: description of their origin.
    """

    sets: ImageSets
    source: str

    @property
    def all(self) -> list[Path]:
        """Every photo, those for the archive first."""
        return self.sets.files()


def choose_photos(given: Path | None, own: Sequence[Path], folder: Path) -> Photos:
    """Find photos and copy them into ``folder``.

    Args:
        given: a folder of images; None: ``own``, else those of scikit-image.
        own: the old archive's examples.
        folder: an empty folder.

    Raises:
        UsageError: there are no photos.
    """
    paths, source = _found(given, own)
    placed: list[Path] = []
    for number, path in enumerate(paths):
        taken = any(path.name == other.name for other in placed)
        placed.append(Path(shutil.copy(path, folder / (f"{number}-{path.name}" if taken else path.name))))
    names = [str(path) for path in placed]
    return Photos(image_sets(names[:EXAMPLES], names, [], folder), source)


def _found(given: Path | None, own: Sequence[Path]) -> tuple[list[Path], str]:
    if given is not None:
        if not given.is_dir():
            raise UsageError(f"--examples: {given} is not a folder", tip="name a folder with images")
        images = find_images([str(given.resolve())], Path.cwd())
        return images, f"{len(images)} images of {given.name}"
    images = find_images([str(path) for path in own], Path.cwd()) if own else []
    if images:
        return images, "the archive's own examples"
    if installed_version("scikit-image") is None:
        raise UsageError(
            "there are no images to measure with", tip="give some that are like your requests: --examples DIR"
        )
    photos = find_images([f"package:skimage/data/{name}" for name in _PHOTOS], Path.cwd())
    return photos, f"{len(photos)} photos of scikit-image {installed_version('scikit-image')}"
