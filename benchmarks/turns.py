"""Servers that take turns under the same load, and what the rounds come to: medians, spread, ratios, verdicts."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from contenders import Contender
from marsmith.loadtest import Measurement
from marsmith.loadtest.bench import Load, SameAnswer, run_load
from marsmith.loadtest.connection import Answer

OURS = "marsmith"
# A set-up this far below its server's best in every column has shown in one round that it will not become it.
HOPELESS = 0.85
Columns = tuple[int, ...]
Check = Callable[[int, Answer], Answer]


@dataclass(frozen=True)
class Cell:
    """What one set-up did at one number of clients, over the rounds.

    Attributes:
        rates: answers per second, of each round.
        p99s_ms: 99th percentiles of the latency, of each round.
        errors: what went wrong, and how often, in all rounds.
        driver_kept_up: whether the load generator did, in every round.
    """

    rates: tuple[float, ...]
    p99s_ms: tuple[float, ...]
    errors: dict[str, int] = field(default_factory=dict)
    driver_kept_up: bool = True

    @property
    def rate(self) -> float:
        """Median of the rates; 0 where requests failed: a server that drops some is not fast."""
        return 0.0 if self.errors else median(self.rates)

    @property
    def p99_ms(self) -> float:
        """Median of the 99th percentiles."""
        return median(self.p99s_ms)

    @property
    def spread(self) -> float:
        """Largest rate less the smallest, as a share of the median."""
        return (max(self.rates) - min(self.rates)) / median(self.rates) if median(self.rates) else math.nan


@dataclass(frozen=True)
class Row:
    """One server with one set-up: clients -> what it did; ``failure`` where it did not start."""

    server: str
    setup: str
    cells: dict[int, Cell]
    failure: str = ""


def median(values: Sequence[float]) -> float:
    """Return the median; NaN for none, or where one is NaN."""
    return math.nan if not values or any(math.isnan(value) for value in values) else statistics.median(values)


def top_label(body: bytes) -> str | None:
    """Return the first key of a reply, which is the best label; of a list with one reply in it, that one's."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return next(iter(value), None) if isinstance(value, dict) else None


def same_answers() -> Check:
    """Return a check that every server gives each input the same best label; one for all servers of a comparison."""
    return SameAnswer(top_label)


def take_turns(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    clients: Columns,
    warm_up_s: float = 1.0,
    begin: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Start, load and stop each in turn, in a new order each round; set-ups without hope stop after the first.

    Args:
        contenders: the servers.
        rounds: of turns.
        seconds: of each measurement.
        clients: of each column.
        warm_up_s: of each measurement, not counted.
        begin: is called at the start of each round.
    """
    check = same_answers()
    found: dict[Contender, list[dict[int, Measurement]]] = {each: [] for each in contenders}
    failures: dict[Contender, str] = {}
    for number in range(rounds):
        order = [each for each in contenders if each not in failures]
        if number:
            order = promising(order, found)
        random.Random(number).shuffle(order)
        begin()
        for each in order:
            print(f"round {number + 1} of {rounds}: {each.name}, {each.note}", file=sys.stderr)
            try:
                found[each].append(_measure(each, check, seconds, clients, warm_up_s))
            except (OSError, RuntimeError) as error:
                failures[each] = str(error)
                print(f"{each.name}, {each.note}: {error}", file=sys.stderr)
    return [row_of(each.name, each.note, found[each], failures.get(each, "")) for each in contenders]


def _measure(
    contender: Contender, check: Check, seconds: float, clients: Columns, warm_up_s: float
) -> dict[int, Measurement]:
    with contender.serve() as target:
        # Every worker has its first batches behind it before anything counts.
        run_load(target, Load(clients=max(clients), seconds=warm_up_s, warm_up_s=0), check=check)
        return {
            count: run_load(target, Load(clients=count, seconds=seconds, warm_up_s=warm_up_s), check=check)
            for count in clients
        }


def promising(contenders: Sequence[Contender], found: dict[Contender, list[dict[int, Measurement]]]) -> list[Contender]:
    """Return those that came near the best set-up of their server in some column of the first round."""

    def rates(each: Contender) -> dict[int, float]:
        return {count: m.requests_per_second for count, m in found[each][0].items()} if found[each] else {}

    def near(each: Contender) -> bool:
        peers = [rates(other) for other in contenders if other.name == each.name]
        own = rates(each)
        return any(rate >= HOPELESS * max(peer.get(count, 0.0) for peer in peers) for count, rate in own.items())

    return [each for each in contenders if near(each)]


def row_of(server: str, setup: str, rounds: Sequence[dict[int, Measurement]], failure: str = "") -> Row:
    """Gather the rounds of one set-up."""
    columns = rounds[0] if rounds else {}
    return Row(server, setup, {count: _cell([each[count] for each in rounds]) for count in columns}, failure)


def _cell(measurements: Sequence[Measurement]) -> Cell:
    errors: dict[str, int] = {}
    for each in measurements:
        for verdict, count in each.errors.items():
            errors[verdict] = errors.get(verdict, 0) + count
    return Cell(
        tuple(each.requests_per_second for each in measurements),
        tuple(each.p99_ms for each in measurements),
        errors,
        all(each.driver_kept_up for each in measurements),
    )


def best(rows: Sequence[Row], server: str, clients: int) -> Row | None:
    """Return the set-up of ``server`` with the largest rate at so many clients; None where none answered."""
    own = [row for row in rows if row.server == server and clients in row.cells and row.cells[clients].rate > 0]
    return max(own, key=lambda row: row.cells[clients].rate, default=None)


def servers(rows: Sequence[Row]) -> list[str]:
    """Return the servers, in the order of their first rows."""
    return list(dict.fromkeys(row.server for row in rows))


def table(rows: Sequence[Row], clients: Columns) -> list[str]:
    """Return the lines of a table in Markdown; the best set-up of each server in each column is bold."""
    heads = [f"c={count} req/s" for count in clients] + [f"c={count} p99 ms" for count in clients]
    heads += [f"of ours, c={count}" for count in clients]
    lines = ["| server | set-up | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    for row in rows:
        if row.failure and not row.cells:
            reason = (row.failure.splitlines() or [""])[0]
            lines.append(f"| {row.server} | {row.setup} | did not start: {reason} |" + " |" * (len(heads) - 1))
            continue
        cells = [_rate(rows, row, count) for count in clients]
        cells += [f"{row.cells[count].p99_ms:.0f}" for count in clients]
        cells += [_of_ours(rows, row, count) for count in clients]
        lines.append(f"| {row.server} | {row.setup} | " + " | ".join(cells) + " |")
    return lines


def _rate(rows: Sequence[Row], row: Row, count: int) -> str:
    cell = row.cells[count]
    if cell.errors:
        return f"{median(cell.rates):.0f}, failed: {sum(cell.errors.values())}"
    if not cell.rate:
        return "none in time"
    text = f"{cell.rate:.0f}" + (f" ±{50 * cell.spread:.0f}%" if len(cell.rates) > 1 else "")
    return f"**{text}**" if best(rows, row.server, count) is row else text


def _of_ours(rows: Sequence[Row], row: Row, count: int) -> str:
    ours = best(rows, OURS, count)
    return f"{row.cells[count].rate / ours.cells[count].rate:.2f}" if ours else "-"


@dataclass(frozen=True)
class Verdict:
    """Our best set-up against the best peer at one number of clients.

    Attributes:
        clients: how many.
        ours: our set-up.
        peer: the other server and its set-up.
        ratio: of the rates.
        our_p99_ms: 99th percentile of our latency.
        peer_p99_ms: of the other's.
        goal: for the ratio.
        most: the ratio that decode and model alone would have, with no server.
    """

    clients: int
    ours: str
    peer: str
    ratio: float
    our_p99_ms: float
    peer_p99_ms: float
    goal: float
    most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether we are as much faster as we want, at equal or lower latency."""
        return self.ratio >= self.goal and self.our_p99_ms <= self.peer_p99_ms

    def targets(self, what: str) -> list[dict[str, Any]]:
        """Return what is wanted beside what is, as the page of all benchmarks takes it."""
        where = f"{what}: {self.clients} clients"
        rate = {"what": f"{where}, best set-up / that of {self.peer}", "goal": self.goal, "value": self.ratio}
        rate |= {} if self.most is None else {"most": self.most}
        p99 = {"what": f"{where}, the other's p99 / ours", "goal": 1.0, "value": self.peer_p99_ms / self.our_p99_ms}
        return [rate, p99]

    def __str__(self) -> str:
        """Say it."""
        standing = "ahead" if self.ratio > 1 else "BEHIND"
        line = f"{self.clients} clients: {standing}, {self.ratio:.2f} times the best peer ({self.peer})"
        line += f"; p99 {self.our_p99_ms:.0f} ms against {self.peer_p99_ms:.0f} ms"
        line += "" if self.most is None else f"; decode and model with no server at all: {self.most:.2f} times"
        return f"{line}; goal {self.goal:g} times at no higher p99: {'met' if self.is_met else 'NOT MET'}"


def verdicts(
    rows: Sequence[Row],
    clients: Columns,
    goals: dict[int, float],
    limit: float | None = None,
    *,
    name: str = OURS,
) -> list[Verdict]:
    """Compare the best set-up of one server with the best of all others, in each column.

    Args:
        rows: of all servers.
        clients: of each column.
        goals: by number of clients.
        limit: what decode and model reach in batches with no server, per second; says nothing about a single client.
        name: the one server.
    """
    found = []
    for count in clients:
        ours = best(rows, name, count)
        bests = [row for other in servers(rows) if other != name and (row := best(rows, other, count))]
        peer = max(bests, key=lambda row: row.cells[count].rate, default=None)
        if ours is None or peer is None:
            continue
        own, other = ours.cells[count], peer.cells[count]
        names = (ours.setup, f"{peer.server}, {peer.setup}")
        most = None if limit is None or count == 1 else limit / other.rate
        found.append(
            Verdict(count, *names, own.rate / other.rate, own.p99_ms, other.p99_ms, goals.get(count, 1.0), most)
        )
    return found


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON."""
    return [
        {
            "server": row.server,
            "setup": row.setup,
            "failure": row.failure,
            "clients": {
                str(count): {
                    "requestsPerSecond": [round(rate, 2) for rate in cell.rates],
                    "p99Ms": [None if math.isnan(value) else round(value, 2) for value in cell.p99s_ms],
                    "errors": cell.errors,
                    "driverKeptUp": cell.driver_kept_up,
                }
                for count, cell in row.cells.items()
            },
        }
        for row in rows
    ]
