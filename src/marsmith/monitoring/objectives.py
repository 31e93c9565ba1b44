"""What alerts hold a model to, from the service levels of the specs."""

from __future__ import annotations

from dataclasses import dataclass

from marsmith.config.model_spec import load_spec
from marsmith.project import Project

# Of a 99th percentile, one request in a hundred may be slower.
SLOW_BUDGET = 0.01


@dataclass(frozen=True)
class Objective:
    """Service level of a model.

    Attributes:
        model: model name.
        error_budget: part of the requests that may fail, above 0 and at most 0.05.
        p99_s: time within which 99% of the requests are answered, in seconds.
        requests_per_second: load at which that holds.
    """

    model: str
    error_budget: float
    p99_s: float
    requests_per_second: float


@dataclass(frozen=True)
class Objectives:
    """Service levels of a project.

    Attributes:
        models: one for each model that has one, sorted by name.
        without: names of the models without, sorted.
    """

    models: tuple[Objective, ...]
    without: tuple[str, ...] = ()


def read_objectives(project: Project) -> Objectives:
    """Read the service levels of all specs of a project.

    Raises:
        SpecError: a spec violates the format.
    """
    found, without = [], []
    for name in project.spec_names():
        level = load_spec(project, name).service_level
        if level is None:
            without.append(name)
        else:
            # Rounded, because 1 - 0.999 is not 0.001.
            budget = round(1 - level.availability, 9)
            found.append(Objective(name, budget, level.p99_ms / 1000, level.requests_per_second))
    return Objectives(tuple(found), tuple(without))
