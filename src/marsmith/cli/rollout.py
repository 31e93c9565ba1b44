"""Show the rollouts of canaries and shadows, and give them orders.

    marsmith rollout                           # all models
    marsmith rollout efficientnet_lite0        # one, with both versions side by side
    marsmith rollout efficientnet_lite0 --watch
    marsmith rollout pause efficientnet_lite0  # also: resume, promote, abort
    marsmith rollout efficientnet_lite0 --plot rollout.svg

`marsmith deploy ARCHIVE --canary` begins a rollout, and the supervisor of the server drives it. EVIDENCE is compared
with LIMIT: when one kind of event reaches it, the canary gets no further requests and is unregistered. `abort` does the
same at once. `promote` makes the canary the default version without further steps. Each waits until it is done. With
--watch and a model, the command ends with the rollout, and the exit code is 1 unless the canary was promoted, or the
shadow without a canary ran for its time.

Of a shadow, which `marsmith deploy ARCHIVE --shadow` begins, the agreement of the replies is shown with its interval,
and where the report lies. `abort` ends the copies, writes the report and unregisters the version.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from marsmith.cli.output import add_json_flag, json_text, note, print_fields, print_json, print_table, say
from marsmith.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from marsmith.deploy.traffic.state import Order, RolloutState
    from marsmith.project import Project

_ORDERS = ("pause", "resume", "promote", "abort")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith rollout``."""
    parser.add_argument("what", metavar="MODEL|pause|resume|promote|abort", nargs="?", help="a model, or an order")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the model, after an order")
    parser.add_argument("--watch", action="store_true", help="repeat until the rollout has ended, or until Ctrl-C")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="time between two updates (%(default)g)"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the timeline into an .svg, .png or .pdf file")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Show rollouts, or give an order."""
    from marsmith.project import find_project

    project = find_project()
    if args.interval <= 0:
        raise UsageError(f"--interval must be more than 0 seconds, not {args.interval:g}")
    if args.what in _ORDERS:
        return _order(project, args)
    if args.model is not None:
        raise UsageError(f"{args.what!r} is not an order", tip=f"one of {', '.join(_ORDERS)}, before the model")
    if args.plot:
        return _plot(project, args)
    if args.watch:
        return _watch(project, args)
    return _show(project, args)


def _order(project: Project, args: argparse.Namespace) -> int:
    from marsmith.deploy.traffic.control import give_order

    if args.model is None:
        raise UsageError(f"{args.what} which model?", tip=f"marsmith rollout {args.what} MODEL")
    if args.plot or args.watch:
        raise UsageError("an order goes with neither --plot nor --watch")
    state = give_order(project, args.model, cast("Order", args.what), note)
    _print(state, as_json=args.json)
    return 0


def _show(project: Project, args: argparse.Namespace) -> int:
    from marsmith.deploy.traffic import view

    found = view.rollouts(project, args.what)
    if args.what:
        _print(found[0], as_json=args.json)
    elif args.json:
        print_json([view.as_data(state) for state in found])
    elif found:
        print_table(view.LIST_COLUMNS, [view.list_row(state) for state in found])
    else:
        print("no model has had a rollout")
    return 0


def _plot(project: Project, args: argparse.Namespace) -> int:
    from marsmith.deploy.traffic import view
    from marsmith.deploy.traffic.plot import plot_rollout

    if not args.what:
        raise UsageError("--plot draws the rollout of one model", tip="marsmith rollout MODEL --plot FILE.svg")
    plot_rollout(view.rollouts(project, args.what)[0], args.plot)
    say(f"{args.plot} shows the rollout of {args.what}")
    return 0


def _print(state: RolloutState, *, as_json: bool) -> None:
    from marsmith.deploy.traffic import view
    from marsmith.deploy.traffic.shadow_report import flips
    from marsmith.predictions.report import FLIP_COLUMNS

    if as_json:
        print_json(view.as_data(state))
        return
    print_fields(view.about(state))
    print()
    print_table(view.SIDE_COLUMNS, view.side_rows(state))
    print()
    print_table(view.EVIDENCE_COLUMNS, view.evidence_rows(state))
    print()
    if rows := flips(state):
        print_table(FLIP_COLUMNS, rows)
        print()
    for line in view.timeline(state):
        say(line)


def _watch(project: Project, args: argparse.Namespace) -> int:
    looks = _looks(project, args.what, args.interval)
    if args.json:
        last = _watch_as_json(looks)
    elif sys.stdout.isatty():
        last = _watch_in_terminal(looks)
    else:
        last = _watch_in_lines(looks)
    return 0 if not args.what or last[0].phase in {"promoted", "compared"} else 1


def _looks(project: Project, model: str | None, interval_s: float) -> Iterator[Sequence[RolloutState]]:
    """Yield the rollouts again and again; those of one model until it has ended."""
    from marsmith.deploy.traffic import view

    while True:
        found = view.rollouts(project, model)
        yield found
        if model and found[0].is_over:
            return
        time.sleep(interval_s)


def _watch_as_json(looks: Iterator[Sequence[RolloutState]]) -> Sequence[RolloutState]:
    from marsmith.deploy.traffic import view

    found: Sequence[RolloutState] = ()
    for found in looks:
        print(json_text([view.as_data(state) for state in found]), flush=True)
    return found


def _watch_in_lines(looks: Iterator[Sequence[RolloutState]]) -> Sequence[RolloutState]:
    """Print what happens, once."""
    from marsmith.deploy.traffic import view

    found: Sequence[RolloutState] = ()
    printed: set[str] = set()
    for found in looks:
        for state in found:
            for line in view.timeline(state):
                text = f"{state.model}:{state.version} {line}"
                if text not in printed:
                    printed.add(text)
                    say(text)
                    sys.stdout.flush()
    return found


def _watch_in_terminal(looks: Iterator[Sequence[RolloutState]]) -> Sequence[RolloutState]:
    from rich.console import Console
    from rich.live import Live

    found: Sequence[RolloutState] = ()
    with Live(console=Console(), auto_refresh=False) as live:
        for found in looks:
            live.update(_screen(found), refresh=True)
    return found


def _screen(found: Sequence[RolloutState]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from marsmith.deploy.traffic import view

    if len(found) != 1:
        return _table(view.LIST_COLUMNS, [view.list_row(state) for state in found])
    state = found[0]
    lines = [Text(f"{name:<11} {value}") for name, value in view.about(state).items()]
    sides = _table(view.SIDE_COLUMNS, view.side_rows(state))
    evidence = _table(view.EVIDENCE_COLUMNS, view.evidence_rows(state))
    return Group(*lines, Text(""), sides, Text(""), evidence, Text(""), *map(Text, view.timeline(state)))


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
