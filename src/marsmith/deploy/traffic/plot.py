"""Plot of a rollout: the share of the canary and the evidence against it, over time."""

from __future__ import annotations

from pathlib import Path

from marsmith.deploy.traffic.evidence import Weighing
from marsmith.deploy.traffic.state import RolloutState
from marsmith.plots import plotted

# More evidence is drawn as this many times its limit.
_HIGHEST = 10.0


def plot_rollout(state: RolloutState, path: Path) -> None:
    """Plot the timeline of a rollout into ``path``, an .svg, .png or .pdf file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: the file has another suffix or cannot be written.
    """
    seconds = [moment.at_s - state.began_s for moment in state.timeline]
    with plotted(path) as figure:
        shares, evidence = figure.subplots(2, 1, sharex=True)
        shares.step(seconds, [moment.share / 100 for moment in state.timeline], where="post")
        shares.set_ylabel(f"share of {state.version}, %")
        shares.set_ylim(bottom=0)
        shares.set_title(f"{state.model}: {state.version} instead of {state.stable}: {state.phase}")
        for finding in Weighing(state).findings():
            highest = _HIGHEST * finding.limit
            values = [min(moment.evidence.get(finding.kind, 1.0), highest) for moment in state.timeline]
            (line,) = evidence.plot(seconds, values, label=f"{finding.kind}, limit {finding.limit:.0f}")
            evidence.axhline(finding.limit, linestyle="--", linewidth=1, color=line.get_color())
        evidence.set_yscale("log")
        evidence.set_ylabel("evidence")
        evidence.set_xlabel("seconds")
        evidence.legend()
        for moment, second in zip(state.timeline, seconds, strict=True):
            if moment.what:
                text = moment.what.partition(":")[0]
                place = (second, moment.share / 100)
                shares.annotate(text, place, (4, 4), textcoords="offset points", fontsize=7).set_in_layout(False)
