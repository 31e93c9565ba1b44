"""The folder of `marsmith monitor --write`: every file that Prometheus, Alertmanager and Grafana need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import UsageError
from marsmith.files import write_atomically
from marsmith.monitoring import containers
from marsmith.monitoring.dashboards import BOARDS, render_board
from marsmith.monitoring.objectives import Objectives
from marsmith.monitoring.prometheus import ALERTMANAGER, render_prometheus
from marsmith.monitoring.rules import RUNBOOKS, render_rules
from marsmith.monitoring.targets import Targets
from marsmith.server.front.counters import BUCKETS_MS

RULES_FILE = "rules/marsmith.rules.yml"
ALERTMANAGER_FILE = "alertmanager.yml"
COMPOSE_FILE = "compose.yaml"
# Examples, which are the team's once they are there.
OWN_FILES = frozenset({ALERTMANAGER_FILE, COMPOSE_FILE})
# Bounds of the front's histogram of latencies, in seconds.
EDGES_S = tuple(bound / 1000 for bound in BUCKETS_MS)
_HEAD = "# Written by `marsmith monitor --write`, which replaces it.\n"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        written: names of the files.
        kept: names of files that were there already and are the team's.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]


def render_folder(
    targets: Targets, objectives: Objectives, *, runbooks: str = RUNBOOKS, alertmanager: str = "127.0.0.1:9093"
) -> dict[str, str]:
    """Return the text of each file by its name in the folder.

    Args:
        targets: what Prometheus reads.
        objectives: service levels.
        runbooks: URL of the page with the runbooks.
        alertmanager: ``host:port`` of Alertmanager.
    """
    prometheus = render_prometheus(targets.found, alertmanager, ["rules/*.yml"])
    return {
        "prometheus.yml": _HEAD + prometheus,
        RULES_FILE: _HEAD + render_rules(objectives.models, EDGES_S, runbooks),
        ALERTMANAGER_FILE: ALERTMANAGER,
        COMPOSE_FILE: containers.render_compose(targets.found),
        "grafana/provisioning/datasources/prometheus.yml": _HEAD + containers.DATA_SOURCES,
        "grafana/provisioning/dashboards/marsmith.yml": _HEAD + containers.BOARD_FOLDER,
        **{f"grafana/dashboards/{board.name}.json": render_board(board) for board in BOARDS},
    }


def write_folder(folder: Path, texts: Mapping[str, str]) -> Written:
    """Write the files, each atomically; those of the team stay as they are.

    Raises:
        UsageError: a file cannot be written.
    """
    kept = tuple(name for name in texts if name in OWN_FILES and (folder / name).exists())
    written = tuple(name for name in texts if name not in kept)
    for name in written:
        try:
            write_atomically(folder / name, texts[name], sync=False)
        except OSError as error:
            raise UsageError(f"cannot write {folder / name}: {error.strerror}") from None
    return Written(written, kept)
