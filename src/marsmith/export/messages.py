"""Messages to and from the export process: plain JSON, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobRequest:
    """Request for one form of one model.

    Attributes:
        export: the spec's export block, as written.
        form: the form, as text.
        weights: name of the weights; see ``weights.load_weights``.
        images: paths of encoded images, by ``examples``, ``calibration`` and ``validation``.
        root: folder of relative paths of weights.
        folder: folder of the files.
        handlers: folder of the handler, with its ``marsmith_handler``; None if there is none.
        allow_pickle: whether to load weights from a file that can run code.
        strip_prefix: prefix of the names of the weights; see ``weights.load_weights``.
        threads: number of threads of a worker.
        thorough: whether to compare on all validation images and crops, instead of only on the examples.
        labels: file with the classes of the validation images.
        reference: file with the eager module's outputs, for the next job of the run.
        int8_plans: folder in which the jobs of the run share plans of int8; see ``int8_shared``.
        locked: whether the form passed the gate before and is only confirmed.
        locked_weights: record of the weights in the lock.
        int8_plan: record of the plan in the lock.
        relock_tip: command to type if the lock does not fit.
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
    """Result for a form.

    Attributes:
        serialized_file, companions: paths in the request's folder.
        engine_file: name of the companion that the engine opens; None for the serialized file.
        report: signature, preprocessing and weights, for export.json.
        labels: label by class index as text.
        files: further files that it was made from, besides the recipe.
        parity: figures as measured.
        parity_record: figures for an archive without a lock.
        problems: limits of the gate that are exceeded; empty if it passes.
        tip: what to try then.
        int8_plan: record of the quantisation.
        bytes: total size of the files, in bytes.
        load_s: load time in the engine, in seconds.
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
