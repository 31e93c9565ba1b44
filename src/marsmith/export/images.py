"""Images for calibration and validation of an export: find them by name, and split them without overlap.

Images that a model was calibrated on are poor evidence for its quality. If there are enough photos, some are held out
for the gate. Otherwise the gate uses other crops of the same photos.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from marsmith import files
from marsmith.errors import ExportError, UsageError
from marsmith.inputs import PACKAGE, read_input
from marsmith.json_reader import read_json
from marsmith.stand_ins import pointer_at

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_GLOB = "*?["
# From this number of photos on, every second one is held out for the gate.
ENOUGH_TO_HOLD_OUT = 16


@dataclass(frozen=True)
class ImageSets:
    """Photos of an export.

    Attributes:
        examples: photos of the spec's examples, with which the export is traced.
        calibration: photos for the calibration of int8, in order.
        validation: photos for the gate besides the examples, in order.
        held_out: ``images`` if no photo is in both, else ``crops``.
    """

    examples: tuple[Path, ...]
    calibration: tuple[Path, ...]
    validation: tuple[Path, ...]
    held_out: Literal["images", "crops"]

    def files(self) -> list[Path]:
        """Return every file once, in order."""
        return list(dict.fromkeys([*self.examples, *self.calibration, *self.validation]))


def image_sets(examples: Sequence[str], calibration: Sequence[str], validation: Sequence[str], root: Path) -> ImageSets:
    """Find the images that a spec names and split them.

    Args:
        examples: inputs of the spec's examples; those that are not files (standard input) are ignored.
        calibration: files, folders, globs, ``package:NAME/PATH``; folders are searched recursively.
        validation: the same.
        root: folder of relative paths.

    Raises:
        UsageError: a name matches no file.
    """
    shown = [path for name in examples if (path := read_input(name, root).path)]
    given = find_images(calibration, root)
    wanted = find_images(validation, root)
    if wanted:
        used = given or shown
        apart = _not_among(wanted, used)
        return ImageSets(tuple(shown), tuple(used), tuple(apart or wanted), "images" if apart else "crops")
    if len(given) >= ENOUGH_TO_HOLD_OUT:
        return ImageSets(tuple(shown), tuple(given[::2]), tuple(given[1::2]), "images")
    both = tuple(given or shown)
    return ImageSets(tuple(shown), both, both, "crops")


def find_images(references: Sequence[str], root: Path) -> list[Path]:
    """Return the image files of the references, each once; those of one reference are sorted by path.

    Raises:
        UsageError: a reference matches no image.
    """
    found: dict[Path, None] = {}
    for reference in references:
        paths = _matches(reference, root)
        if not paths:
            raise UsageError(
                f"{reference!r} matches no image", tip="name files, folders or globs, relative to the project's root"
            )
        found |= dict.fromkeys(paths)
    return list(found)


def _matches(reference: str, root: Path) -> list[Path]:
    folder, inner = root, reference
    if reference.startswith(PACKAGE):
        folder, inner = _package_folder(reference)
    path = folder / inner
    if any(char in inner for char in _GLOB):
        start = Path(path.anchor) if Path(inner).is_absolute() else folder
        return _images(start.glob(str(path.relative_to(start))))
    if path.is_dir():
        return _images(path.rglob("*"))
    return [read_path] if (read_path := read_input(reference, root).path) else []


def _package_folder(reference: str) -> tuple[Path, str]:
    package, _, inner = reference.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations or ".." in inner.split("/"):
        raise UsageError(
            f"{reference!r} does not name files in an installed package",
            tip="write package:NAME/PATH, as in package:skimage/data/c*.png",
        )
    return Path(next(iter(spec.submodule_search_locations))), inner


def _images(paths: Iterable[Path]) -> list[Path]:
    found = sorted(path for path in paths if path.suffix.lower() in _SUFFIXES and path.is_file())
    for path in found:
        instead = pointer_at(path)
        if instead:
            raise UsageError(f"{path} {instead.what}, not a photo", tip=instead.tip)
    return found


def _not_among(wanted: Sequence[Path], used: Sequence[Path]) -> list[Path]:
    """Return the files of ``wanted`` whose content is not in ``used``."""
    seen = {files.sha256(path) for path in used}
    return [path for path in wanted if files.sha256(path) not in seen]


def read_labels(path: Path) -> dict[str, int | str]:
    """Read the classes of images: a JSON object of file name to class index or label.

    Raises:
        ExportError: the file cannot be read, or has another content.
    """
    try:
        loaded = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"validation_labels: {path} cannot be read: {error}") from error
    ok = isinstance(loaded, dict) and all(type(value) in (int, str) for value in loaded.values())
    if not ok:
        raise ExportError(f"validation_labels: {path} is not an object of file name to class index or label")
    return dict(loaded)


def digests(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Return name and SHA-256 of files, in order, as a lock records a set of images."""
    return [{"name": path.name, "sha256": files.sha256(path)} for path in paths]
