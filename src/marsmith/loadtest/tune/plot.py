"""Plot of the trials: latency against throughput, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from marsmith.loadtest.tune.search import Trial, pareto_front
from marsmith.plots import plotted


def plot_trials(trials: Sequence[Trial], p99_ms: float, path: Path) -> None:
    """Plot trials into ``path``, an .svg, .png or .pdf file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: the file has another suffix or cannot be written.
    """
    with plotted(path) as figure:
        axes = figure.add_subplot()
        good = [trial for trial in trials if not trial.reason]
        axes.scatter([t.requests_per_second for t in good], [t.p99_ms for t in good], s=[8 * t.seconds for t in good])
        front = pareto_front(good)
        # The front first: its labels keep their places.
        for trial in [*front, *(trial for trial in good if trial not in front)]:
            at = trial.setup.placement
            text = f"{at.workers}x{at.threads} b{trial.setup.batch_size} d{trial.setup.max_batch_delay_ms}"
            axes.annotate(
                text, (trial.requests_per_second, trial.p99_ms), fontsize=7, xytext=(4, 3), textcoords="offset points"
            )
        axes.plot([t.requests_per_second for t in front], [t.p99_ms for t in front], linewidth=1, label="Pareto front")
        axes.axhline(p99_ms, linestyle="--", linewidth=1, color="grey", label=f"limit, {p99_ms:g} ms")
        axes.set_xlabel("answers per second (random arrivals)")
        axes.set_ylabel("p99 latency, ms")
        axes.set_yscale("log")
        axes.legend()
