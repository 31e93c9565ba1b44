"""Dashboards against Grafana's own types, by TypeScript's compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from marsmith.monitoring.dashboards import BOARDS, render_board
from support.long_tests import long
from support.projects import REPOSITORY

TYPES = REPOSITORY / "tests" / "grafana"

pytestmark = [
    long(part="monitor"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed: it brings Grafana's types"),
]


@pytest.fixture(scope="module")
def compile_board(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return what the compiler says of the JSON of a board; nothing if it is right."""
    folder = tmp_path_factory.mktemp("grafana")
    for name in ("boards.ts", "package.json", "package-lock.json", "tsconfig.json"):
        shutil.copy(TYPES / name, folder)
    run(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")

    def compiled(board: str) -> str:
        text = f"import type {{ Board }} from './boards';\nexport const board: Board = {board}"
        (folder / "board.ts").write_text(text)
        done = subprocess.run(["npx", "tsc", "-p", "."], cwd=folder, capture_output=True, text=True, check=False)
        assert bool(done.returncode) == bool(done.stdout)
        return done.stdout

    return compiled


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_grafana_has_no_objection_to_a_board(compile_board: Callable[[str], str], board: object) -> None:
    assert not compile_board(render_board(board))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"unit": "reqps"', '"unit": 7'),
        ('"options": []', '"options": null'),
        ('"mode": "thresholds"', '"mode": "threshold"'),
        ('"placement": "bottom"', '"placement": "under"'),
        ('"textMode": "auto"', '"textModus": "auto"'),
        ('"type": "timeseries"', '"type": "graph"'),
        ('"id": 3,', '"id": "3",'),
    ],
)
def test_a_fault_in_a_board_is_found(compile_board: Callable[[str], str], old: str, new: str) -> None:
    text = render_board(BOARDS[0])
    assert old in text
    changed = text.replace(old, new)
    json.loads(changed)
    assert "error TS2" in compile_board(changed)
