"""What is known of a version's drift, and the file of a model with it: ``.marsmith/drift/<model>.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from marsmith import files, state_files
from marsmith.errors import FormatError, ServerError
from marsmith.monitoring.drift.windows import Window
from marsmith.state.model_file import ModelFile
from marsmith.state_files import NewerFormatError
from marsmith.statistics import Calibration, ClassSketch, DriftRule, NumberSketch

FORMAT = 1
# Windows whose verdicts are kept, about a week; and versions of a model.
MOST_WINDOWS = 200
MOST_VERSIONS = 3

Against = Literal["reference", "baseline"]
Stamp = tuple[int, int]


@dataclass(frozen=True)
class StatisticBaseline:
    """One statistic of a baseline.

    Attributes:
        sketch: bins with their counts.
        calibration: what its windows differ by without a change.
    """

    sketch: NumberSketch | ClassSketch
    calibration: Calibration


@dataclass(frozen=True)
class Baseline:
    """A period of live traffic.

    Attributes:
        begin: in seconds since the epoch.
        end: in seconds since the epoch.
        windows: windows that it had.
        observations: thinned observations in those of them that were kept.
        statistics: by name.
    """

    begin: float
    end: float
    windows: int
    observations: int
    statistics: dict[str, StatisticBaseline]


@dataclass(frozen=True)
class StatisticVerdict:
    """What a window says about one statistic.

    Attributes:
        statistic: name.
        observations: values of it in the window.
        distance: total variation distance, 0 to 1.
        p_value: probability of a distance at least as large without a change.
        drifted: whether it is both significant and large.
        counts: of the window, in the bins of what it is compared with.
    """

    statistic: str
    observations: int
    distance: float
    p_value: float
    drifted: bool
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class WindowVerdict:
    """What a window says.

    Attributes:
        begin: in seconds since the epoch.
        end: in seconds since the epoch.
        observations: thinned observations.
        level: p-value below which one statistic is significant.
        statistics: one each.
    """

    begin: float
    end: float
    observations: int
    level: float
    statistics: tuple[StatisticVerdict, ...]

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the statistics that have drifted."""
        return tuple(one.statistic for one in self.statistics if one.drifted)

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "begin": self.begin,
            "end": self.end,
            "observations": self.observations,
            "level": self.level,
            "drifted": list(self.drifted),
            "statistics": [
                {key: value for key, value in vars(one).items() if key != "counts"} for one in self.statistics
            ],
        }


@dataclass(frozen=True)
class DriftState:
    """What is known of one version.

    Attributes:
        model: model name.
        version: version.
        until: time of the last observation that was taken in, in seconds since the epoch.
        seen: windows of the baseline until now, while it is collected.
        collected: those of them that are kept, at most ``baseline.MOST_KEPT``.
        began: time of the first observation; 0: none yet.
        baseline: None while it is collected.
        skew: verdict of the first window against the archive's reference; None without a reference, or before it.
        windows: verdicts against the baseline, oldest first.
        rule: for its windows, if it is not the default one.
    """

    model: str
    version: str
    until: float = 0.0
    seen: int = 0
    collected: tuple[Window, ...] = ()
    began: float = 0.0
    baseline: Baseline | None = None
    skew: WindowVerdict | None = None
    windows: tuple[WindowVerdict, ...] = ()
    rule: DriftRule | None = None

    def judged(self, verdict: WindowVerdict) -> DriftState:
        """Return the state with one more verdict."""
        return replace(self, windows=(*self.windows, verdict)[-MOST_WINDOWS:])

    def record(self) -> dict[str, Any]:
        """Return what it says, as a JSON object."""
        baseline = self.baseline
        return {
            "model": self.model,
            "version": self.version,
            "baseline": baseline
            and {
                "begin": baseline.begin,
                "end": baseline.end,
                "windows": baseline.windows,
                "observations": baseline.observations,
            },
            "baseline_windows": self.seen,
            "skew": self.skew and self.skew.record(),
            "drift": self.windows[-1].record() if self.windows else None,
            "windows_judged": len(self.windows),
            "windows_drifted": sum(bool(window.drifted) for window in self.windows),
        }


@dataclass(frozen=True)
class _Content:
    versions: tuple[DriftState, ...] = field(default=())


class DriftFile(ModelFile):
    """The file of one model's drift; it has the last few versions, the latest last."""

    FOLDER = "drift"

    def read(self) -> tuple[DriftState, ...]:
        """Read the states of the versions; empty if there are none.

        Raises:
            ServerError: the file is damaged, or a later marsmith wrote it.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
            return state_files.parse(_Content, text, str(self.path), version=FORMAT).versions
        except FileNotFoundError:
            return ()
        except NewerFormatError as error:
            raise ServerError(error.message, tip=error.tip) from None
        except (OSError, UnicodeDecodeError, FormatError) as error:
            raise ServerError(
                f"the drift of {self.model} cannot be read: {error}",
                tip=f"remove it (rm {self.path}); a new baseline begins then",
            ) from None

    def stamp(self) -> Stamp | None:
        """Return what changes with the content of the file; None if it does not exist."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def write(self, states: Mapping[str, DriftState]) -> None:
        """Write the states by version, the latest last; the oldest are left out.

        Raises:
            ServerError: the file cannot be written; the previous one is kept.
        """
        kept = tuple(states.values())[-MOST_VERSIONS:]
        try:
            files.write_atomically(self.path, state_files.render(_Content(kept), FORMAT, indent=None), mode=0o600)
        except OSError as error:
            raise ServerError(f"cannot write the drift of {self.model}: {error.strerror}") from None
