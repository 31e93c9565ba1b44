"""``MAR-INF/reference.json``: sketches of what a version says about its validation data, by statistic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from marsmith.archive.read import Archive
from marsmith.errors import FormatError
from marsmith.json_reader import read_json
from marsmith.statistics import ClassSketch, NumberSketch, Sketch

FILE_NAME = "MAR-INF/reference.json"
FORMAT_VERSION = 1
_MOST_STATISTICS = 1000


@dataclass(frozen=True)
class Reference:
    """What validation data look like to a version.

    Attributes:
        inputs: number of inputs.
        sha256: digest of their digests, in their order.
        statistics: sketches by name.
    """

    inputs: int
    sha256: str
    statistics: Mapping[str, Sketch]


def render_reference(reference: Reference) -> str:
    """Render ``reference.json``."""
    statistics = {name: _record(sketch) for name, sketch in sorted(reference.statistics.items())}
    content = {"formatVersion": FORMAT_VERSION, "inputs": reference.inputs, "sha256": reference.sha256}
    return json.dumps({**content, "statistics": statistics}, indent=1, ensure_ascii=False) + "\n"


def parse_reference(text: str, source: str = FILE_NAME) -> Reference:
    """Parse ``reference.json``.

    Raises:
        FormatError: the text is not a reference of a format that this marsmith knows.
    """
    try:
        data = read_json(text)
        if data["formatVersion"] != FORMAT_VERSION:
            raise FormatError(source, [f"formatVersion is {data['formatVersion']!r}, not {FORMAT_VERSION}"])
        statistics = {str(name): _sketch(entry) for name, entry in data["statistics"].items()}
        reference = Reference(int(data["inputs"]), str(data["sha256"]), statistics)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(source, [f"not a reference: {type(error).__name__}: {error}"]) from None
    if len(statistics) > _MOST_STATISTICS:
        raise FormatError(source, [f"{len(statistics)} statistics, at most {_MOST_STATISTICS}"])
    return reference


def read_reference(archive: Archive) -> Reference | None:
    """Return an archive's reference; None if it has none.

    Raises:
        ArchiveError: the member is damaged.
        FormatError: it is not a reference.
    """
    text = archive.text(FILE_NAME)
    return None if text is None else parse_reference(text, f"{archive.path.name}/{FILE_NAME}")


def _record(sketch: Sketch) -> dict[str, Any]:
    if isinstance(sketch, NumberSketch):
        return {"edges": list(sketch.edges), "counts": list(sketch.counts)}
    return {"classes": list(sketch.names), "counts": list(sketch.counts)}


def _sketch(entry: Mapping[str, Any]) -> Sketch:
    counts = tuple(entry["counts"])
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"counts {counts!r:.60}")
    sketch: Sketch
    if "edges" in entry:
        edges = tuple(float(edge) for edge in entry["edges"])
        if any(after <= before for before, after in pairwise(edges)):
            raise ValueError("edges do not rise")
        sketch = NumberSketch(edges, counts)
    else:
        sketch = ClassSketch(tuple(str(name) for name in entry["classes"]), counts)
    if len(sketch.labels) != len(counts):
        raise ValueError(f"{len(counts)} counts for {len(sketch.labels)} bins")
    return sketch
