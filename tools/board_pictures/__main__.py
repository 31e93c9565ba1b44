"""Pictures of the three boards, from the data of a real Prometheus, for the pages of the documentation.

    python tools/board_pictures --minutes 12        # of a `marsmith monitor --up` that runs
    python tools/board_pictures --prometheus http://127.0.0.1:9090 --into docs/how-to/boards

It draws with Grafana's own React panels in Chromium, because Grafana itself comes as no package. npm, which brings 450
MB into build/board_pictures, and Chromium must be installed. Panels without data are named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

from marsmith.monitoring.dashboards import BOARDS, Board, render_board

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
WIDTH, CELL = 1600, 38
POINTS = 240
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Draw the boards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=12, help="how much of the past (%(default)g)")
    parser.add_argument("--into", type=Path, default=REPOSITORY / "docs" / "how-to" / "boards", metavar="FOLDER")
    args = parser.parse_args()
    script = bundle(REPOSITORY / "build" / "board_pictures")
    args.into.mkdir(parents=True, exist_ok=True)
    to_s = time.time()
    empty = []
    for board in BOARDS:
        drawn = content(board, args.prometheus, to_s - 60 * args.minutes, to_s)
        draw(drawn, script, args.into / f"{board.name}.png")
        empty += [
            f"{board.name}: {each['title']}" for each in drawn["panels"] if not each["series"] and each["targets"]
        ]
    if empty:
        raise SystemExit("panels without data:\n" + "\n".join(empty))


def bundle(folder: Path) -> str:
    """Return the page's script, with Grafana's panels in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "page.tsx"):
        shutil.copy(HERE / name, folder)
    if not (folder / "node_modules").exists():
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"], cwd=folder, check=True
        )
    command = ["npx", "esbuild", "page.tsx", "--bundle", "--minify", "--jsx=automatic", "--outfile=page.js"]
    command += ["--define:process.env.NODE_ENV='production'", "--loader:.ttf=dataurl", "--log-level=error"]
    subprocess.run(command, cwd=folder, check=True)
    style = (folder / "page.css").read_text(encoding="utf-8")
    return f"<style>{style}</style><script>{(folder / 'page.js').read_text(encoding='utf-8')}</script>"


def content(board: Board, prometheus: str, from_s: float, to_s: float) -> dict[str, Any]:
    """Return a board with the data of its panels."""
    panels = json.loads(render_board(board))["panels"]
    for panel in panels:
        targets = panel.setdefault("targets", [])
        panel["series"] = [each for target in targets for each in series(target, prometheus, from_s, to_s)]
    return {"from": 1000 * from_s, "to": 1000 * to_s, "width": WIDTH, "panels": panels}


def series(target: dict[str, Any], prometheus: str, from_s: float, to_s: float) -> list[dict[str, Any]]:
    """Return what a query had in a period."""
    query = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
    step = max(5, round((to_s - from_s) / POINTS))
    limits: dict[str, str | float] = {"query": query, "start": from_s, "end": to_s, "step": step}
    reply = requests.get(f"{prometheus}/api/v1/query_range", limits, timeout=60).json()
    if reply["status"] != "success":
        raise SystemExit(f"{query}: {reply['error']}")
    found = [in_steps(target, each, from_s, to_s, step) for each in reply["data"]["result"]]
    # An instant query has only what is there now.
    return [each for each in found if not target["instant"] or any(each["values"][-2:])]


def in_steps(target: dict[str, Any], found: dict[str, Any], from_s: float, to_s: float, step: int) -> dict[str, Any]:
    """Return a series with a value, or none, at each step, and its name."""
    known = {round((at - from_s) / step): float(value) for at, value in found["values"]}
    count = math.floor((to_s - from_s) / step) + 1
    values = [known.get(i) for i in range(count)]
    return {
        "name": re.sub(r"{{(\w+)}}", lambda label: found["metric"].get(label[1], ""), target["legendFormat"]),
        "times": [round(1000 * (from_s + i * step)) for i in range(count)],
        "values": [None if value is None or not math.isfinite(value) else value for value in values],
    }


def draw(board: dict[str, Any], script: str, picture: Path) -> None:
    """Draw a board into a picture."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("Chromium is not installed\nTIP: apt-get install --no-install-recommends chromium")
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) * CELL
    text = json.dumps(board).replace("</", "<\\/")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><body style="margin:0"><div id="board"></div>'
            f"<script>window.BOARD = {text}</script>{script}",
            encoding="utf-8",
        )
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}"]
        command += ["--virtual-time-budget=20000", f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
