"""What other rules say about the same windows: Evidently's documented defaults, a plain test, a distance alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

# https://docs.evidentlyai.com/metrics/customize_data_drift: what Evidently 0.7 does unless told otherwise.
_LARGE = 1000
_SIGNIFICANT = 0.05
_FAR = 0.1
_SMALLEST_DEVIATION = 1e-3


def by_evidently(window: Floats, reference: Floats) -> bool:
    """Return whether a numeric column with more than 5 values drifts.

    With at most 1,000 rows in the reference it is the two-sample Kolmogorov-Smirnov test at 0.05, with more
    Wasserstein's distance in units of the reference's standard deviation, at 0.1.
    """
    if len(reference) <= _LARGE:
        return bool(stats.ks_2samp(reference, window).pvalue < _SIGNIFICANT)
    deviation = max(float(np.std(reference)), _SMALLEST_DEVIATION)
    return bool(stats.wasserstein_distance(reference, window) / deviation >= _FAR)


def by_test_alone(window: Floats, reference: Floats) -> bool:
    """Return whether the Kolmogorov-Smirnov test is significant at 0.05, whatever the size of the difference."""
    return bool(stats.ks_2samp(reference, window).pvalue < _SIGNIFICANT)
