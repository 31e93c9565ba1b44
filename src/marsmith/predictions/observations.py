"""What a line of the prediction log says about drift: one observation of several statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from marsmith.predictions.log import Prediction
from marsmith.statistics import Value

STATUS = "status"


@dataclass(frozen=True)
class Observation:
    """One request.

    Attributes:
        time: of the reply, in seconds since the epoch.
        body: digest of the request's body.
        values: a number or a class of each statistic.
    """

    time: float
    body: str
    values: Mapping[str, Value]


def observation_of(prediction: Prediction) -> Observation:
    """Return the observation of a request: of its first item, since its items are not independent, and its status."""
    watched = prediction.watched[0] if prediction.watched else {}
    # Of a model that gives NaN there is no number to compare.
    watched = {name: value for name, value in watched.items() if isinstance(value, str) or math.isfinite(value)}
    return Observation(prediction.time, prediction.input_sha256, {**watched, STATUS: str(prediction.status)})
