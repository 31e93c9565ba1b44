"""Values from Envoy: replies and times of each model over REST, as clients see them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from marsmith import metric_names as names
from marsmith.client.metrics import CounterSample, parse_exposition
from marsmith.errors import FrontError
from marsmith.monitoring.exporter.samples import Sample, Suffix
from marsmith.monitoring.exporter.totals import Key, Series, Totals
from marsmith.server.front import admin, counters, files
from marsmith.server.front.door import Front
from marsmith.server.outlook import Outlook

_ASK_S = 2.0
_CLASSES = ("2xx", "4xx", "5xx")
_TIME_PARTS: tuple[Suffix, ...] = ("_bucket", "_sum", "_count")
_PER_S = 1000.0


class FrontSource:
    """Counts of Envoy by model, since this source was made."""

    def __init__(self, outlook: Outlook, front: Front) -> None:
        """Begin at what Envoy has counted so far, if it runs.

        Args:
            outlook: what the supervisor sees.
            front: the front, whether the server has it or not.
        """
        self._outlook, self._front = outlook, front
        self._totals = Totals()
        self._counted: frozenset[str] = frozenset()
        with suppress(FrontError):
            self._totals.begin_at(_counts(self._read()))

    def collect(self) -> Iterable[Sample]:
        """Return the counts, and whether Envoy answers; nothing without the front."""
        if not self._front.is_prepared:
            return ()
        up = True
        try:
            self._totals.grow(_counts(self._read()), _series)
        except FrontError:
            up = False
        models = {each.model_name for each in self._outlook.look.versions}
        for model in models:
            for each in _CLASSES:
                self._totals.at_least(Series(names.FRONT_REPLIES, (model, each)), 0.0)
        return [
            Sample(names.FRONT_UP, (), float(up)),
            Sample(names.FRONT_RESTARTS, (), self._outlook.look.front_restarts),
            *(each for each in self._totals.samples() if each.labels[0] in models),
        ]

    def count_models(self) -> None:
        """Let Envoy count the models that are registered now; do nothing without the front.

        Raises:
            FrontError, FormatError: Envoy does not take it.
        """
        models = frozenset(each.model_name for each in self._outlook.look.versions)
        if models - self._counted and self._front.process is not None:
            files.count_models(self._front.folder, models)
            self._counted = models

    def _read(self) -> Iterable[CounterSample]:
        return parse_exposition(admin.ask(self._front.folder, counters.STATISTICS, timeout_s=_ASK_S), "Envoy")


def _counts(samples: Iterable[CounterSample]) -> dict[Key, float]:
    return {_key(each): each.value for each in samples}


def _key(sample: CounterSample) -> Key:
    labels = sample.labels
    return sample.name, counters.model_of(labels), labels.get(counters.CLASS_LABEL, ""), labels.get("le", "")


def _series(key: Key) -> tuple[Series, float] | None:
    name, model, code_class, bound = key
    if name == counters.REPLIES:
        return Series(names.FRONT_REPLIES, (model, f"{code_class}xx")), 1.0
    for part in _TIME_PARTS:
        if name == counters.TIME_MS + part:
            factor = 1 / _PER_S if part == "_sum" else 1.0
            return Series(names.FRONT_SECONDS, (model,), part, _in_seconds(bound)), factor
    return None


def _in_seconds(bound: str) -> str:
    return bound if bound in {"", "+Inf"} else str(float(bound) / _PER_S)
