"""What the process that exports is told, and what it answers: plain JSON, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobRequest:
    """One form of one model.

    Attributes:
        export: the spec's export block, as it was written.
        form: which form of it, as text.
        weights: see ``weights.load_weights``.
        images: paths of encoded images, by ``examples``, ``calibration`` and ``validation``.
        root: what relative weight paths start from.
        folder: where the files go.
        handlers: the folder of the handler, with the ``marsmith_handler`` that serves; None where the handler has none.
        allow_pickle: load also weights whose file can run code.
        strip_prefix: of the names of the weights; see ``weights.load_weights``.
        threads: that a worker would compute with.
        thorough: compare on all validation images and crops; otherwise on the examples only.
        labels: file with the right classes of the validation images.
        reference: file that keeps the eager module's outputs for the next job of the run.
        int8_plans: folder where the jobs of the run keep plans of int8 for each other; see ``int8_shared``.
        locked: the form was gated before; confirm it only.
        locked_weights: record of the weights that the lock fits.
        int8_plan: record of the plan that the lock holds.
        relock_tip: what to type where the lock does not fit.
    """

    export: dict[str, Any]
    form: str
    weights: str
    images: dict[str, list[str]]
    root: str
    folder: str
    handlers: str | None = None
    allow_pickle: bool = False
    strip_prefix: str = ""
    threads: int = 1
    thorough: bool = False
    labels: str | None = None
    reference: str | None = None
    int8_plans: str | None = None
    locked: bool = False
    locked_weights: dict[str, Any] | None = None
    int8_plan: dict[str, Any] | None = None
    relock_tip: str | None = None


@dataclass(frozen=True)
class JobResult:
    """What became of a form.

    Attributes:
        serialized_file, companions: paths in the request's folder.
        engine_file: name of the companion that the engine opens; None where it opens the serialized file.
        report: signature, preprocessing and weights, for export.json.
        labels: class index, as text, to name.
        files: files besides the recipe that it was made from.
        parity: figures as measured.
        parity_record: figures as an archive without a lock records them.
        problems: where it is further off than the gate allows; empty where it passes.
        tip: what to try then.
        int8_plan: how int8 was done.
        bytes: size of the files together.
        load_s: how long the engine took to load them.
    """

    serialized_file: str
    companions: list[str]
    engine_file: str | None
    report: dict[str, Any]
    labels: dict[str, str]
    files: list[str]
    parity: dict[str, Any]
    parity_record: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    tip: str = ""
    int8_plan: dict[str, Any] | None = None
    bytes: int = 0
    load_s: float = 0.0
