"""What other tools decide on the same data: a threshold in a window, a z-test, Mann-Whitney; each looked at often."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rollout_simulation import Floats, log_step, log_values


@dataclass(frozen=True)
class Alike:
    """Two versions that are alike, minute by minute, for each run.

    Attributes:
        requests: of canary and stable in a minute: (2, minutes, runs).
        errors: among them.
        latency_ms: mean latency in the minute.
    """

    requests: Floats
    errors: Floats
    latency_ms: Floats


def alike(*, per_second: float, share: float, error: float, minutes: int, runs: int, seed: int) -> Alike:
    """Draw what both versions do: the same probability of an error, latencies of 20 ms, log-normal with sigma 0.5."""
    random = np.random.default_rng(seed)
    shares = np.array([share, 1 - share])[:, None, None]
    requests = random.poisson(per_second * 60 * shares, (2, minutes, runs)).astype(np.float64)
    errors = random.binomial(requests.astype(np.int64), error).astype(np.float64)
    mean, deviation = 20 * math.exp(0.5**2 / 2), 20 * math.exp(0.5**2 / 2) * math.sqrt(math.exp(0.5**2) - 1)
    latency_ms = random.normal(mean, deviation / np.sqrt(np.maximum(requests, 1)))
    return Alike(requests, errors, latency_ms)


def by_threshold(data: Alike, success: float = 0.99) -> float:
    """Return in how many runs the canary's success in some minute is below a limit, as Flagger and Argo decide."""
    rate = 1 - data.errors[0] / np.maximum(data.requests[0], 1)
    return float((rate < success).any(axis=0).mean())


def by_z_test(data: Alike, alpha: float = 0.01) -> float:
    """Return in how many runs a z-test of the two error rates until then, one-sided, is significant at some minute."""
    requests, errors = data.requests.cumsum(axis=1), data.errors.cumsum(axis=1)
    rates, pooled = errors / requests, errors.sum(axis=0) / requests.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (rates[0] - rates[1]) / np.sqrt(pooled * (1 - pooled) * (1 / requests).sum(axis=0))
    return float((np.nan_to_num(z) > _normal_quantile(1 - alpha)).any(axis=0).mean())


def by_mann_whitney(data: Alike, alpha: float = 0.02, least: int = 5) -> float:
    """Return in how many runs Mann-Whitney, two-sided, on latencies by minute is ever significant, as in Kayenta."""
    minutes, found = data.latency_ms.shape[1], np.zeros(data.latency_ms.shape[2], dtype=bool)
    for seen in range(least, minutes + 1):
        canary, stable = data.latency_ms[:, :seen]
        above = (canary[:, None] > stable[None]).sum(axis=(0, 1))
        deviation = math.sqrt(seen * seen * (2 * seen + 1) / 12)
        found |= abs(above - seen * seen / 2) / deviation > _normal_quantile(1 - alpha / 2)
    return float(found.mean())


def by_evidence(data: Alike, share: float, limit: float) -> float:
    """Return in how many runs the evidence of the errors reaches its limit at some minute."""
    steps = log_step(share, True)[:, :, None], log_step(share, False)[:, :, None]
    logs = (steps[0] * data.errors[0] + steps[1] * data.errors[1]).cumsum(axis=1)
    values = log_values(logs.reshape(logs.shape[0], -1)).reshape(logs.shape[1:])
    return float((values >= math.log(limit)).any(axis=0).mean())


def _normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
