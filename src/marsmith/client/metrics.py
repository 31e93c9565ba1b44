r"""The text format in which Prometheus reads metrics: one sample a line, ``name{label="value",...} number``.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from marsmith.errors import FormatError

_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*"
    r"(?:\{(?P<labels>(?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?[ \t]*"
    r"(?P<value>[^ \t]+)(?:[ \t]+(?P<time>-?\d+))?[ \t]*"
)
_LABEL = re.compile(r'[ \t]*(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"(?P<value>(?:[^"\\]|\\.)*)"[ \t]*(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "\\": "\\", '"': '"'}
_UNESCAPED = {"\n": "\\n", "\\": "\\\\", '"': '\\"'}


@dataclass(frozen=True)
class Sample:
    """One number of one metric; a histogram has several, as ``x_count``, ``x_sum`` and ``x_bucket``."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_exposition(text: str, source: str = "the metrics API") -> list[Sample]:
    """Parse the samples of an exposition; comments are left out, and so are the times of samples.

    Raises:
        FormatError: lines that are no samples.
    """
    samples, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            samples.append(_sample(line.strip()))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise FormatError(source, problems)
    return samples


def render_exposition(samples: Iterable[Sample]) -> str:
    """Render samples, one line each; parsing gives them back."""
    return "".join(f"{sample.name}{_labels(sample.labels)} {sample.value!r}\n" for sample in samples)


def _sample(line: str) -> Sample:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise ValueError(f"not a sample: {line!r}")
    return Sample(match["name"], float(match["value"]), _parse_labels(match["labels"] or ""))


def _parse_labels(text: str) -> dict[str, str]:
    labels, position = {}, 0
    while text[position:].strip():
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError(f"not labels: {text!r}")
        labels[match["name"]] = _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[0]), match["value"])
        position = match.end()
    return labels


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{"".join(_UNESCAPED.get(c, c) for c in value)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}"
