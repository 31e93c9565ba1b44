"""The handlers' prediction log: read it, join the replies of two versions, compare and report them."""

from __future__ import annotations

from marsmith.predictions.compare import Difference, Tolerance, compare_replies
from marsmith.predictions.comparison import Comparison, Report
from marsmith.predictions.join import Joiner, Pair
from marsmith.predictions.log import LogFollower, Prediction, read_line

__all__ = [
    "Comparison",
    "Difference",
    "Joiner",
    "LogFollower",
    "Pair",
    "Prediction",
    "Report",
    "Tolerance",
    "compare_replies",
    "read_line",
]
