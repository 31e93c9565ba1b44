"""Monitor the server with Prometheus, Alertmanager and Grafana.

    marsmith monitor --write monitoring   # configuration, alert rules and dashboards, into a folder
    marsmith monitor --up                 # run Prometheus and Alertmanager here, until Ctrl-C

The rules follow from the service levels of the model specs. A model without one has only the alerts that need none.
--write replaces all its files but alertmanager.yml and compose.yaml, which are examples to edit.

--up needs Prometheus and Alertmanager installed. Their configuration, data (15 days, at most 2 GB) and logs are in
.marsmith/monitoring, and both listen on the loopback. It reads the server that runs, or the addresses in the project's
files if none does. Start it again after a change of a spec.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note, print_json, say
from marsmith.errors import UsageError
from marsmith.project import find_project

if TYPE_CHECKING:
    from marsmith.monitoring.local import Program
    from marsmith.monitoring.objectives import Objectives
    from marsmith.monitoring.targets import Targets
    from marsmith.project import Project

_LARGEST_PORT = 65_535


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="DIR", help="write the files into a folder")
    what.add_argument("--up", action="store_true", help="run Prometheus and Alertmanager")
    parser.add_argument(
        "--runbooks", metavar="URL", help="page with the runbooks, to which alerts link (docs/reference/alerts.md)"
    )
    for name, port in (("prometheus", 9090), ("alertmanager", 9093)):
        parser.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"port for --up; 0: a free one ({port})")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files, or run the programs."""
    project = find_project()
    if args.write:
        _check_no_ports(args)
        _write(project, args)
    else:
        _up(project, args)
    return 0


def _check_no_ports(args: argparse.Namespace) -> None:
    if args.prometheus_port is not None or args.alertmanager_port is not None:
        raise UsageError("--prometheus-port and --alertmanager-port go with --up")


def _write(project: Project, args: argparse.Namespace) -> None:
    from marsmith.monitoring.folder import render_folder, write_folder
    from marsmith.monitoring.objectives import read_objectives
    from marsmith.monitoring.rules import RUNBOOKS
    from marsmith.monitoring.targets import configured_targets

    targets, objectives = configured_targets(project), read_objectives(project)
    done = write_folder(args.write, render_folder(targets, objectives, runbooks=args.runbooks or RUNBOOKS))
    _note_what_is_missing(targets, objectives)
    if args.json:
        print_json({"folder": str(args.write), "written": done.written, "kept": done.kept, **_about(objectives)})
        return
    for name in done.written:
        say(f"{args.write / name}")
    for name in done.kept:
        note(f"{args.write / name} is yours, and stays as it is")


def _up(project: Project, args: argparse.Namespace) -> None:
    from marsmith.monitoring import local
    from marsmith.monitoring.folder import render_folder
    from marsmith.monitoring.objectives import read_objectives
    from marsmith.monitoring.rules import RUNBOOKS
    from marsmith.monitoring.targets import configured_targets, running_targets

    programs = local.find_programs()
    targets, objectives = running_targets(project), read_objectives(project)
    if targets is None:
        targets = configured_targets(project)
        note("no server runs: marsmith serve starts it")
    ports = local.choose_ports(
        _port(args.prometheus_port, 9090, "prometheus"), _port(args.alertmanager_port, 9093, "alertmanager")
    )
    alertmanager = f"{local.LOOPBACK}:{ports.alertmanager}"
    texts = render_folder(targets, objectives, runbooks=args.runbooks or RUNBOOKS, alertmanager=alertmanager)
    _note_what_is_missing(targets, objectives)
    with local.running(project, texts, programs, ports) as started:
        _tell(project, started, objectives, as_json=args.json)
        local.watch(started)


def _port(given: int | None, usual: int, name: str) -> int:
    port = usual if given is None else given
    if not 0 <= port <= _LARGEST_PORT:
        raise UsageError(f"--{name}-port must be from 0 to {_LARGEST_PORT}, not {port}")
    return port


def _tell(project: Project, started: list[Program], objectives: Objectives, *, as_json: bool) -> None:
    if as_json:
        urls = {program.name: program.url for program in started}
        print_json({"folder": str(project.monitoring), **urls, **_about(objectives)})
    else:
        for program in started:
            say(f"{program.name:<12}  {program.url}")
        note(f"configuration, data and logs: {project.monitoring}; Ctrl-C ends both")
    sys.stdout.flush()


def _about(objectives: Objectives) -> dict[str, list[str]]:
    return {
        "with_service_level": [each.model for each in objectives.models],
        "without_service_level": list(objectives.without),
    }


def _note_what_is_missing(targets: Targets, objectives: Objectives) -> None:
    for reason in targets.left_out:
        note(reason)
    if objectives.without:
        note(f"no alerts on budgets for {', '.join(objectives.without)}: no service level")
        note(f"TIP: write service_level into config/models/{objectives.without[0]}.yaml")
