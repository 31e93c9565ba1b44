"""The marsmith command in a project, and plain requests to its server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from marsmith import run_state
from marsmith.project import PROJECT_VARIABLE, Project


def marsmith(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marsmith", *arguments],
        env=os.environ | {PROJECT_VARIABLE: str(project.root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def with_config(source: Path, target: Path, config: str) -> Path:
    """Write ``source`` anew with another model config."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, config if name == "model-config.yaml" else old.read(name))
    return target


def asked(project: Project, path: str) -> int:
    """Return the status of a request, with the project's own token."""
    state = run_state.read(project)
    token = json.loads(state.key_file.read_text())["inference"]["key"] if state.tokens else ""
    request = urllib.request.Request(f"{state.inference}/predictions/{path}", data=b"abc", method="POST")
    request.add_header("Content-Type", "application/octet-stream")
    request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
