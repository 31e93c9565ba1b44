"""The rule of a rollout, by simulation: how often it goes back falsely, how soon it finds faults, and what others do.

    python benchmarks/rollout.py [--runs 1000] [--detections 10000] [--page docs/explanation/rollout-rule.md] [--json F]

The figures depend on the seed and not on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from marsmith.config.rollout_spec import MIN_AGREEMENT
from marsmith.deploy.traffic.evidence import DISAGREE, KINDS
from marsmith.statistics import Ledger
from prose import fold
from report import markdown
from rollout_rivals import alike, by_evidence, by_mann_whitney, by_threshold, by_z_test
from rollout_simulation import (
    Compared,
    Outcome,
    RatesAt,
    Traffic,
    bursts,
    constant,
    diurnal,
    false_by_users,
    outages,
    ramp,
    simulate,
    simulate_compared,
)

PER_SECOND = 50.0
SECONDS = 1800.0
LIMITS = {finding.kind: finding.limit for finding in Ledger(KINDS).findings()}
# Probabilities of each kind of event on both versions, if they are alike.
USUAL = {"failed": 0.005, "slow": 0.01, "refused": 0.02}
# Share of the replies that disagree if a version is as good, the share that may, and how many are compared.
USUAL_DISAGREEMENT, ALLOWED, SAMPLE = 0.005, 1 - MIN_AGREEMENT, 0.1
DISAGREEING = (1.0, 0.3, 0.05)
SHARES = (0.05, 0.25)
FAULTS = ((1.0, 0.0), (0.3, 0.001), (0.05, 0.001), (0.01, 0.001))
TEXT = """# The rule of a rollout

Written by `{command}`. The figures are of simulated runs and depend on the seed, not on the machine.

A canary goes back if it has more bad events than its share of the traffic explains. If both versions are alike, a
failed, slow or refused request lies with the canary with a probability equal to the canary's share at that moment. Each
event multiplies the evidence by how much better a worse canary explains where the event lies. How many events there are
does not matter, so an outage, a burst or a quiet night moves both versions alike. The evidence may be looked at after
each event: if the canary has at most 1.5 times the odds of its share, evidence ever reaches 1/alpha with a probability
of at most alpha (Ville's inequality). `src/marsmith/statistics/` has the arithmetic and its source.

Replies that disagree with those of the stable version are a rate of the canary alone: each compared reply multiplies
the evidence by how much better a rate above {allowed:.0%} explains whether it disagrees. They are looked for if
`--compare` says so, and have their part of alpha in any case.

Alpha is 1% for a whole rollout. It is split over the kinds of events, and each part gives a limit: {limits}.

## Targets

{targets}
Until users are back on the stable version, the delay of the log and of the front comes on top.

## A version against itself

Both versions have the same probabilities: {usual}. Of 10% of the canary's requests the replies are compared, and
{disagreement:.1%} of them disagree. Shares of 1, 5, 25 and 50%, five minutes each, then on at 50%; 30
minutes, looked at four times a second; {runs:,} runs a line.

{false}
Diurnal: arrivals swing between 5 and 95 requests per second. Bursts: ten times the arrivals for ten seconds, every two
minutes on average. Shared outage: 80% of all requests fail for a minute, every ten minutes on average.

Events of one user are not independent. If one in a hundred of 2,000 users sends 50 requests that fail on any version,
and each of these requests counts, a version goes back from itself in {unthinned:.1%} of the runs. At most one event of
each user counts, and then it is {thinned:.1%}.

## How soon a fault is found

{per_second:g} requests per second, a constant share of the canary, {detections:,} runs a line.

{found}
## How soon other replies are found

The same, with a copy of {sample:.0%} of the canary's requests to the stable version; {allowed:.0%} of the replies may
disagree.

{disagreeing}
## Latency alone

The canary takes 30% longer for each request and fails as rarely as the stable version. Slow is what is above the stable
version's 99th percentile; latencies are log-normal.

{latency}
The wider the latencies scatter, the less a shift of 30% raises the share of slow requests.

## The same data, decided otherwise

Both versions are alike: 0.5% errors, latencies of the same distribution, a canary with 5% of {per_second:g} requests
per second, looked at once a minute for 30 minutes; {runs:,} runs. How often does each rule find the canary worse?

{rivals}
The level of these tests holds for one look at the end. A rollout is looked at all the time.
"""


def false_rollbacks(runs: int, seed: int) -> list[dict[str, Any]]:
    """Return how often a version goes back from itself, by any kind of event, under several kinds of traffic."""
    steady, usual = constant(PER_SECOND), {kind: constant(rate) for kind, rate in USUAL.items()}
    broken = outages(USUAL["failed"], runs, seed, SECONDS)
    cases: dict[str, tuple[RatesAt, dict[str, RatesAt]]] = {
        "steady": (steady, usual),
        "steady, 2 requests per second": (constant(2.0), usual),
        "diurnal": (diurnal(PER_SECOND), usual),
        "bursts": (bursts(PER_SECOND, runs, seed, SECONDS), usual),
        "shared outage": (steady, {**usual, "failed": broken}),
    }
    return [
        {"traffic": name, "false": _any_kind(arrivals, rates, runs, seed)} for name, (arrivals, rates) in cases.items()
    ]


def _any_kind(arrivals: RatesAt, rates: dict[str, RatesAt], runs: int, seed: int) -> float:
    found = np.zeros(runs, dtype=bool)
    for number, (kind, rate) in enumerate(rates.items()):
        traffic = Traffic(arrivals, rate, rate, ramp)
        found |= np.isfinite(simulate(traffic, LIMITS[kind], SECONDS, runs, seed + number).found_s)
    compared = Compared(lambda now: arrivals(now) * ramp(now) * SAMPLE, USUAL_DISAGREEMENT, ALLOWED)
    found |= np.isfinite(simulate_compared(compared, LIMITS[DISAGREE], SECONDS, runs, seed + len(rates)).found_s)
    return float(found.mean())


def detections(runs: int, seed: int) -> list[dict[str, Any]]:
    """Return how soon failing canaries are found."""
    return [
        {"canary": worse, "stable": usual, **_detection("failed", share, worse, usual, runs, seed)}
        for share in SHARES
        for worse, usual in FAULTS
    ]


def disagreeing(runs: int, seed: int) -> list[dict[str, Any]]:
    """Return how soon canaries are found that answer otherwise."""
    rows = []
    for share in SHARES:
        for rate in DISAGREEING:
            compared = Compared(constant(PER_SECOND * share * SAMPLE), rate, ALLOWED)
            outcome = simulate_compared(compared, LIMITS[DISAGREE], SECONDS, runs, seed)
            rows.append({"share": share, "rate": rate, **_soon(outcome)})
    return rows


def slower(runs: int, seed: int) -> list[dict[str, Any]]:
    """Return how soon a canary is found that takes 30% longer."""
    normal, rows = NormalDist(), []
    for sigma in (0.3, 0.5):
        slow = 1 - normal.cdf(normal.inv_cdf(0.99) - math.log(1.3) / sigma)
        rows += [
            {"sigma": sigma, "canary": slow, **_detection("slow", share, slow, 0.01, runs, seed)} for share in SHARES
        ]
    return rows


def _detection(kind: str, share: float, worse: float, usual: float, runs: int, seed: int) -> dict[str, Any]:
    traffic = Traffic(constant(PER_SECOND), constant(worse), constant(usual), lambda _now: share)
    return {"share": share, **_soon(simulate(traffic, LIMITS[kind], SECONDS, runs, seed))}


def _soon(outcome: Outcome) -> dict[str, Any]:
    quantiles = {"median_s": outcome.quantile_s(0.5), "p95_s": outcome.quantile_s(0.95)}
    return {"found": outcome.found, **quantiles, "events": float(np.median(outcome.events))}


def rivals(runs: int, seed: int) -> dict[str, float]:
    """Return how often each rule finds a difference between versions that are alike."""
    data = alike(per_second=PER_SECOND, share=0.05, error=0.005, minutes=30, runs=runs, seed=seed)
    return {
        "success of at least 99% in each minute (Flagger, Argo)": by_threshold(data),
        "z-test of the error rates, 1%": by_z_test(data),
        "Mann-Whitney on the latencies by minute, 2% (Kayenta)": by_mann_whitney(data),
        "evidence of the errors": by_evidence(data, 0.05, LIMITS["failed"]),
    }


def measure(runs: int, detected: int, seed: int) -> dict[str, Any]:
    """Simulate all."""
    users = {
        name: false_by_users(thinned=thinned, limit=LIMITS["failed"], users=2_000, runs=runs, seed=seed)
        for name, thinned in (("thinned", True), ("unthinned", False))
    }
    return {
        "runs": runs,
        "detections": detected,
        "limits": LIMITS,
        "false": false_rollbacks(runs, seed),
        "users": users,
        "found": detections(detected, seed),
        "disagreeing": disagreeing(detected, seed),
        "latency": slower(detected, seed),
        "rivals": rivals(runs, seed),
    }


def targets(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return each target beside what was found."""
    false = max(row["false"] for row in [*found["false"], {"false": found["users"]["thinned"]}])
    at_5 = {row["canary"]: row["p95_s"] for row in found["found"] if row["share"] == 0.05}
    slow = min(row["found"] for row in found["latency"])
    rows = [
        ("false rollbacks of a version against itself, worst line", "<= 1%", f"{false:.1%}", false <= 0.01),
        ("found at a share of 5%, failing 100%, p95", "<= 4 s", f"{at_5[1.0]:.1f} s", at_5[1.0] <= 4),
        ("found at a share of 5%, failing 5%, p95", "<= 70 s", f"{at_5[0.05]:.1f} s", at_5[0.05] <= 70),
        ("latency 30% longer, same failures: found in 30 minutes", ">= 95%", f"{slow:.1%}", slow >= 0.95),
    ]
    return [(what, goal, value, "met" if met else "**not met**") for what, goal, value, met in rows]


def page(found: dict[str, Any], command: str) -> str:
    """Render the page."""
    columns = ("found", "median", "p95", "bad requests of the canary until then")
    text = TEXT.format(
        command=command,
        limits=limits_text(found["limits"]),
        targets=markdown(("what", "target", "simulated", ""), targets(found)),
        usual=", ".join(f"{kind} {rate:.1%}" for kind, rate in USUAL.items()),
        allowed=ALLOWED,
        disagreement=USUAL_DISAGREEMENT,
        sample=SAMPLE,
        disagreeing=markdown(
            ("share", "replies that disagree", "found", "median", "p95", "of them until then"),
            [(f"{r['share']:.0%}", f"{r['rate']:.0%}", *_cells(r)) for r in found["disagreeing"]],
        ),
        runs=found["runs"],
        detections=found["detections"],
        per_second=PER_SECOND,
        false=markdown(("traffic", "false rollbacks"), [(r["traffic"], f"{r['false']:.1%}") for r in found["false"]]),
        **found["users"],
        found=markdown(
            ("share", "canary fails", "stable fails", *columns),
            [(f"{r['share']:.0%}", f"{r['canary']:.0%}", f"{r['stable']:.1%}", *_cells(r)) for r in found["found"]],
        ),
        latency=markdown(
            ("share", "sigma", "slow on the canary", *columns),
            [(f"{r['share']:.0%}", r["sigma"], f"{r['canary']:.1%}", *_cells(r)) for r in found["latency"]],
        ),
        rivals=markdown(("rule", "false"), [(name, f"{share:.1%}") for name, share in found["rivals"].items()]),
    )
    return fold("\n\n".join(map(_paragraph, text.split("\n\n")))).rstrip() + "\n"


def limits_text(limits: Mapping[str, float]) -> str:
    """Return the limit of the evidence of each kind of event."""
    return ", ".join(f"{kind} {limit:.0f}" for kind, limit in limits.items())


def _paragraph(text: str) -> str:
    """Return prose in one line, for ``fold``; tables and headings as they are."""
    return text if text.lstrip().startswith(("|", "#")) else " ".join(text.split())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (f"{row['found']:.1%}", f"{row['median_s']:.1f} s", f"{row['p95_s']:.1f} s", f"{row['events']:.0f}")


def main() -> None:
    """Simulate, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="of a version against itself")
    parser.add_argument("--detections", type=int, default=10_000, help="runs of each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = measure(args.runs, args.detections, args.seed)
    given = f"--runs {args.runs} --detections {args.detections} --seed {args.seed}"
    text = page(found, f"python benchmarks/rollout.py {given}")
    print(text)
    if args.page:
        args.page.write_text(text, encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
