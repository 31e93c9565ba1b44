"""Values of declared metrics, and their text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from marsmith.metric_names import METRICS, Metric

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

Suffix = Literal["", "_bucket", "_sum", "_count"]


@dataclass(frozen=True)
class Sample:
    """One value of a metric.

    Attributes:
        metric: its declaration.
        labels: values of its labels, in the order of the declaration.
        value: the value, in the unit of the declaration.
        suffix: which part of a histogram it is; empty for other kinds.
        le: upper bound of a bucket, as text; empty for all else.

    Raises:
        ValueError: the number of labels is not that of the declaration.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float
    suffix: Suffix = ""
    le: str = ""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.metric.labels):
            raise ValueError(f"{self.metric.name} has the labels {self.metric.labels}, not {self.labels}")


class Source(Protocol):
    """Something that knows values of metrics."""

    def collect(self) -> Iterable[Sample]:
        """Return the values now. Whatever it raises, the values that it gave last are given again."""


def exposition(samples: Iterable[Sample], accept: str = "") -> tuple[bytes, str]:
    """Return the samples as text for Prometheus, in the order of the declarations, with its content type.

    Args:
        samples: the values.
        accept: the client's header ``Accept``, which may ask for OpenMetrics.
    """
    # Imported late, because only a supervisor that is asked needs it.
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    return encode(_Registry(tuple(samples))), content_type


@dataclass(frozen=True)
class _Registry:
    """What prometheus_client takes for a registry."""

    samples: tuple[Sample, ...]

    def collect(self) -> Iterator[Family]:
        from prometheus_client.metrics_core import Metric as Family

        found: dict[str, list[Sample]] = {}
        for sample in self.samples:
            found.setdefault(sample.metric.name, []).append(sample)
        for metric in METRICS:
            if metric.name in found:
                family = Family(metric.name.removesuffix("_total"), metric.help, metric.kind)
                for sample in found[metric.name]:
                    labels = dict(zip(metric.labels, sample.labels, strict=True))
                    bound = {"le": sample.le} if sample.le else {}
                    family.add_sample(metric.name + sample.suffix, labels | bound, sample.value)
                yield family
