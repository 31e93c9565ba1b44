"""The lock, ``config/models/<name>.lock``: what ``auto`` was resolved to, why, and what that was made for."""

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
        form: as ``format/precision/engine``.
        verdict: ``passed``; ``refused`` by the gate; ``not possible`` on the machine that measured; ``failed`` where it
            could not be made though nothing was known against it.
        reason: why not; and what to try.
        figures: how far it is from the eager module: see ``parity.Parity``.
        images_per_second: by batch size.
        speedup: its score divided by the eager module's; the score is described in ``export_choice``.
        bytes: size of its files.
        load_s: how long the engine took to load them.
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
    """What a lock was made for; where any of it changes, it fits no longer.

    Attributes:
        export: digest of the spec's export block, but for its weights.
        recipe: digest of the recipe and its local imports.
        images: digest of the names and contents of all images, in order.
        weights: as export.json records them.
        packages: versions of torch and of what the chosen form is made and run with.
    """

    export: Digest
    recipe: Digest
    images: Digest
    weights: dict[str, Any]
    packages: dict[str, str]


class ImageFile(Strict):
    """An image: its file's name and digest."""

    name: str
    sha256: Digest


class Images(Strict):
    """The images, in the order of their use.

    Attributes:
        held_out: ``images`` where the gate saw none of the calibration's, ``crops`` where it saw other crops of them.
    """

    held_out: Literal["images", "crops"]
    calibration: list[ImageFile]
    validation: list[ImageFile]


class ExportLock(Strict):
    """The lock of one model.

    Attributes:
        chosen: the form that builds use.
        why: in words.
        eager_images_per_second: of the eager float32 module, by batch size.
        batch_sizes: those that the score is taken over.
        machine: where it was measured; ``features`` are those of its processor that decide what forms are made and how
            fast they are. A lock may lack them.
        seeds: of weights drawn at random and of crops.
        int8: the record of how the chosen form was quantised.
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
        """Return what was found about a form; None where it was not tried."""
        return next((one for one in self.candidates if one.form == form), None)


def parse_export_lock(text: str, source: str) -> ExportLock:
    """Parse and validate a lock.

    Raises:
        FormatError: with every problem found.
    """
    tip = "the lock is damaged: make it anew with marsmith export MODEL --relock"
    try:
        return strict_yaml.parse(ExportLock, text, source, FormatError)
    except FormatError as error:
        raise FormatError(error.source, list(error.problems), tip=tip) from None


def render_export_lock(lock: ExportLock) -> str:
    """Print a lock: always the same text for the same lock."""
    return _HEAD.format(name=lock.model) + strict_yaml.dump(lock.model_dump(exclude_none=True))
