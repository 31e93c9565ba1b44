"""The lock, ``config/models/<name>.lock``: the resolution of ``auto``, its reasons, and its inputs."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from marsmith import strict_yaml
from marsmith.config.form import Form
from marsmith.errors import FormatError
from marsmith.strict_yaml import Strict

SUFFIX = ".lock"
_HEAD = """\
# What `auto` in {name}.yaml was resolved to, by measuring. A build repeats it and never measures.
# Not written by hand: marsmith export {name} --relock
"""

Digest = Annotated[str, StringConstraints(pattern="[0-9a-f]{64}")]


IMPOSSIBLE: Final = "not possible"


class Candidate(Strict):
    """One form that was tried.

    Attributes:
        form: text ``format/precision/engine``.
        verdict: ``passed``; ``refused`` by the gate; ``not possible`` on the machine that measured; ``failed`` if it
            could not be made for another reason.
        reason: reason of the verdict, and what to try.
        figures: differences from the eager module: see ``parity.Parity``.
        images_per_second: images per second by batch size.
        speedup: its score divided by the eager module's; see ``export_choice`` for the score.
        bytes: size of its files, in bytes.
        load_s: load time in the engine, in seconds.
    """

    form: str
    verdict: Literal["passed", "refused", "not possible", "failed"]
    reason: str = ""
    figures: dict[str, float | int] = Field(default_factory=dict)
    images_per_second: dict[str, float] = Field(default_factory=dict)
    speedup: float | None = None
    bytes: int | None = None
    load_s: float | None = None

    @property
    def what(self) -> Form:
        """The form."""
        return Form.parse(self.form)


class Fits(Strict):
    """Inputs of a lock; if any of them changes, the lock does not fit any more.

    Attributes:
        export: digest of the spec's export block without its weights.
        recipe: digest of the recipe and its local imports.
        images: digest of the names and contents of all images, in order.
        weights: record of the weights as in export.json.
        packages: versions of torch and of the packages that make and run the chosen form.
    """

    export: Digest
    recipe: Digest
    images: Digest
    weights: dict[str, Any]
    packages: dict[str, str]


class ImageFile(Strict):
    """Name and digest of an image file."""

    name: str
    sha256: Digest


class Images(Strict):
    """The images in the order of their use.

    Attributes:
        held_out: ``images`` if the gate used none of the calibration's, ``crops`` if it used other crops of them.
    """

    held_out: Literal["images", "crops"]
    calibration: list[ImageFile]
    validation: list[ImageFile]


class ExportLock(Strict):
    """The lock of one model.

    Attributes:
        chosen: form that builds use.
        why: reason for the choice.
        eager_images_per_second: images per second of the eager float32 module, by batch size.
        batch_sizes: batch sizes of the score.
        machine: machine of the measurement; ``features`` are those of its processor that affect the forms and their
            speed. A lock may lack them.
        seeds: seeds of random weights and of crops.
        int8: record of the quantisation of the chosen form.
    """

    format_version: Literal[1]
    model: str
    chosen: str
    why: str
    fits: Fits
    limits: dict[str, float]
    candidates: list[Candidate]
    eager_images_per_second: dict[str, float]
    batch_sizes: list[int]
    machine: dict[str, Any]
    seeds: dict[str, int]
    images: Images
    int8: dict[str, Any] | None = None

    @property
    def form(self) -> Form:
        """The chosen form."""
        return Form.parse(self.chosen)

    def candidate(self, form: str) -> Candidate | None:
        """Return the candidate of a form; None if it was not tried."""
        return next((one for one in self.candidates if one.form == form), None)


def parse_export_lock(text: str, source: str) -> ExportLock:
    """Parse and validate a lock.

    Raises:
        FormatError: the lock is invalid; the message lists all problems.
    """
    tip = "the lock is damaged: make it anew with marsmith export MODEL --relock"
    try:
        return strict_yaml.parse(ExportLock, text, source, FormatError)
    except FormatError as error:
        raise FormatError(error.source, list(error.problems), tip=tip) from None


def render_export_lock(lock: ExportLock) -> str:
    """Render a lock; the same lock always gives the same text."""
    return _HEAD.format(name=lock.model) + strict_yaml.dump(lock.model_dump(exclude_none=True))
