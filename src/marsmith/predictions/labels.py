"""Truth that comes later: labels of requests, joined with what each version has predicted.

What is right is counted, and a hash of each counted request is kept, so that a label counts once however often its file
is read. No label and no request id is stored.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from marsmith import files, state_files
from marsmith.errors import FormatError, ServerError, UsageError
from marsmith.names import check_model_name
from marsmith.predictions.compare import contents, top_class
from marsmith.predictions.log import Prediction
from marsmith.project import Project
from marsmith.state_files import NewerFormatError
from marsmith.statistics import RateInterval, rate_interval

FORMAT = 1
_FOLDER = "labels"
# Requests whose labels are known to be counted, the latest; about 20 bytes each.
MOST_COUNTED = 200_000
_ALPHA = 0.05
_ID_COLUMNS = ("request_id", "x-request-id", "key", "id")


@dataclass(frozen=True)
class Tally:
    """Labelled predictions of one version.

    Attributes:
        right: those with the label that came.
        labelled: all.
    """

    right: int = 0
    labelled: int = 0


@dataclass(frozen=True)
class Joined:
    """What became of some labels.

    Attributes:
        counted: predictions that a label was joined with for the first time.
        known: predictions whose label was counted before.
        unknown: labels of requests that the log does not have.
    """

    counted: int
    known: int
    unknown: int


@dataclass(frozen=True)
class LabelFile:
    """What a file of labels has.

    Attributes:
        labels: by request id.
        damaged: numbers of the lines without an id or a label.
    """

    labels: Mapping[str, str]
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelledPredictions:
    """The labelled predictions of one model.

    Attributes:
        model: model name.
        versions: by version.
        counted: hashes of requests, version by version, that are counted.
    """

    model: str
    versions: Mapping[str, Tally] = field(default_factory=dict)
    counted: tuple[str, ...] = ()

    @classmethod
    def read(cls, project: Project, model: str) -> LabelledPredictions:
        """Read what was counted until now; nothing if no label has come.

        Raises:
            ServerError: the file is damaged, or a later marsmith wrote it.
        """
        path = _file(project, model)
        try:
            stored = state_files.parse(_Content, path.read_text(encoding="utf-8"), str(path), version=FORMAT)
        except FileNotFoundError:
            return cls(model)
        except NewerFormatError as error:
            raise ServerError(error.message, tip=error.tip) from None
        except (OSError, UnicodeDecodeError, FormatError) as error:
            raise ServerError(
                f"the labels of {model} cannot be read: {error}", tip=f"rm {path}; labels count anew then"
            ) from None
        return cls(model, stored.versions, tuple(stored.counted))

    def accuracies(self) -> dict[str, RateInterval]:
        """Return the accuracy of each version, with an interval that holds at any time."""
        return {version: rate_interval(one.right, one.labelled, _ALPHA) for version, one in self.versions.items()}

    def joined(
        self, predictions: Iterable[Prediction], labels: Mapping[str, str]
    ) -> tuple[LabelledPredictions, Joined]:
        """Return this with some labels joined, by the key of the request, with the predictions that they belong to."""
        counted, versions = dict.fromkeys(self.counted), dict(self.versions)
        fresh, known, found = 0, 0, set()
        for prediction in predictions:
            # A reply carries the key behind the front, and TorchServe's own id without it.
            key = prediction.key if prediction.key in labels else prediction.request_id
            predicted = predicted_class(prediction)
            if prediction.model != self.model or key not in labels or predicted is None:
                continue
            found.add(key)
            mark = _mark(prediction)
            if mark in counted:
                known += 1
                continue
            counted[mark] = None
            fresh += 1
            before = versions.get(prediction.version, Tally())
            right = before.right + (predicted == labels[key])
            versions[prediction.version] = Tally(right, before.labelled + 1)
        after = replace(self, versions=versions, counted=tuple(counted)[-MOST_COUNTED:])
        return after, Joined(fresh, known, len(labels) - len(found))


@dataclass(frozen=True)
class _Content:
    versions: dict[str, Tally]
    counted: list[str]


def add_labels(
    project: Project, model: str, predictions: Iterable[Prediction], labels: Mapping[str, str]
) -> tuple[LabelledPredictions, Joined]:
    """Join labels with logged predictions, and keep what was counted.

    Args:
        project: the project.
        model: model name.
        predictions: from its logs.
        labels: by request id.

    Raises:
        ServerError: the file of counts cannot be read or written; it is then as it was.
    """
    path = _file(project, model)
    with files.lock(path.with_suffix(".lock")):
        after, joined = LabelledPredictions.read(project, model).joined(predictions, labels)
        content = state_files.render(_Content(dict(after.versions), list(after.counted)), FORMAT, indent=None)
        try:
            files.write_atomically(path, content, mode=0o600)
        except OSError as error:
            raise ServerError(f"cannot write the labels of {model}: {error.strerror}") from None
    return after, joined


def labelled_models(project: Project) -> list[str]:
    """Return the models that have labelled predictions, sorted."""
    return sorted(path.stem for path in (project.root / ".marsmith" / _FOLDER).glob("*.json"))


def predicted_class(prediction: Prediction) -> str | None:
    """Return the class that a version has predicted for the first item of a request; None if it predicts no class."""
    if prediction.watched:
        found = prediction.watched[0].get("class")
        return found if isinstance(found, str) else None
    reply = contents(prediction.reply)
    return top_class(reply[0] if isinstance(reply, list) and reply else reply)


def read_labels(path: Path) -> LabelFile:
    """Read labels by request id, from CSV with a header or from JSON lines; of two for one request the last counts.

    The id is in ``request_id``, ``x-request-id``, ``key`` or ``id``, and the label in ``label``. A value has no line
    breaks: so a damaged line does not hide others.

    Raises:
        UsageError: the file cannot be read, or none of its lines has an id and a label.
    """
    labels: dict[str, str] = {}
    damaged: list[int] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, row in _rows(file):
                label = _label(row)
                if label is None:
                    damaged.append(number)
                else:
                    labels[label[0]] = label[1]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason}") from None
    if damaged and not labels:
        raise UsageError(
            f"{path}:{damaged[0]} has no request id or no label",
            tip='CSV with the header request_id,label; or lines as {"request_id": "...", "label": "cat"}',
        )
    return LabelFile(labels, tuple(damaged))


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the lines that are not blank with their numbers from 1 on; a damaged one has nothing."""
    head: list[str] | None = None
    is_json = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        is_json = is_json or (head is None and line.lstrip().startswith("{"))
        if is_json:
            yield number, _object(line)
        elif head is None:
            head = _values(line)
        else:
            yield number, dict(zip(head, _values(line), strict=False))


def _label(row: Mapping[str, object]) -> tuple[str, str] | None:
    key, label = next((row[name] for name in _ID_COLUMNS if row.get(name)), None), row.get("label")
    if not isinstance(key, str | int) or not isinstance(label, str | int | float) or label == "":
        return None
    return str(key), str(label)


def _values(line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\n")]), [])
    except csv.Error:
        return []


def _object(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _file(project: Project, model: str) -> Path:
    return project.root / ".marsmith" / _FOLDER / f"{check_model_name(model)}.json"


def _mark(prediction: Prediction) -> str:
    salted = f"{prediction.version}\0{prediction.key}\0{prediction.input_sha256}"
    return hashlib.blake2b(salted.encode("utf-8", "backslashreplace"), digest_size=8, person=b"labels").hexdigest()
