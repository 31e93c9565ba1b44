"""What is wanted beside what was measured, and beside what the same run leaves room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """What is wanted beside what is.

    Attributes:
        what: is measured.
        goal: as text, with its sign.
        measured: as text.
        met: whether the goal is reached.
        most: what the same run says could be reached at most; None where it says nothing about that.
    """

    what: str
    goal: str
    measured: str
    met: bool
    most: float | None = None

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        most = "" if self.most is None else f"{self.most:.2f}"
        return (self.what, self.goal, self.measured, "met" if self.met else "**not met**", most)


def _at_least(what: str, goal: float, value: float, most: float | None = None) -> Target:
    return Target(what, f">= {goal:g}", f"{value:.2f}", value >= goal, most)


def targets(results: Mapping[str, Result]) -> list[Target]:
    """Return every target of the results that there are, in the order of the page."""
    rows: list[Target] = []
    for made in results.get("serving", {}).get("results", []):
        rows += _serving_targets(made, results["serving"]["machine"]["cores"])
    for made in results.get("judged", {}).get("results", []):
        what = f"{made['model']}: LoadGen server / offline, p99 <= 50 ms"
        rows.append(_at_least(what, 0.80, made["ratio"], made["bound"] / made["offline"]))
    if "service_level" in results:
        rows += _level_targets(results["service_level"])
    rows += [_at_least(**row) for row in results.get("peers", {}).get("targets", [])]
    for row in results.get("tuner", {}).get("targets", []):
        rows.append(Target(row["what"], row["goal"], row["value"], row["met"]))
    return rows + [_at_least(**row) for row in results.get("optimize", {}).get("targets", [])]


def _serving_targets(made: Mapping[str, Any], cores: int) -> list[Target]:
    model, ratios = made["model"], made["ratios"]
    bound = most_of_limit(made, cores)
    return [
        _at_least(f"{model}: 32 clients / decode + model in process", 0.93, ratios["limit"], bound),
        _at_least(f"{model}: fastest form / stock TorchServe's defaults, 32 clients", 5.0, ratios["stock"]),
        _at_least(f"{model}: float32 / stock TorchServe's defaults, 32 clients", 1.5, ratios["stock float32"]),
        _at_least(f"{model}: fastest form / better stock, 1 client", 0.5, ratios["one client"]),
    ]


def _level_targets(result: Result) -> list[Target]:
    level, limit = result["level"], result["p99LimitMs"]
    p99 = level["latencyMs"]["p99"]
    minutes = level["seconds"] / 60
    held = f"{level['rps']:g} requests/s, Poisson, for {minutes:.0f} minutes: p99"
    failures = sum(level["errors"].values())
    growth = level["memoryGrowth"]
    return [
        Target(held, f"<= {limit:g} ms", f"{p99:.1f} ms", p99 <= limit),
        Target("the same: failed requests", "0", str(failures), not failures),
        Target("the same: memory, last quarter / second", "<= 1.05", f"{growth:.3f}", growth <= 1.05),
    ]


def busiest(made: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return our best set-up's cell at 32 clients."""
    ours = [row["32"] for name, row in made["servers"].items() if name.startswith("marsmith")]
    return max(ours, key=lambda cell: float(cell["rps"]))


def most_of_limit(made: Mapping[str, Any], cores: int) -> float:
    """Return the share of the limit that is left for workers as quick as the process alone."""
    alone_ms = cores * 1000 / float(max(made["limit"].values()))
    spent = busiest(made)["spentMs"]
    around_ms = float(spent["frontend"]) + float(spent["driver"])
    return alone_ms / (alone_ms + around_ms)
