"""The README's flow by its commands, in a clone without a lock: export, archive, serve, predict.

`make test-lowest` runs it. `make test` runs the same flow in the tutorial and in a project of the wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsmith.config.properties import ENCODING, as_mapping, parse_properties, render_properties
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.server import lifecycle
from support.live_server import free_addresses
from support.long_tests import long
from support.projects import copy_project

pytestmark = [pytest.mark.tensors, long("setup")]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Project]:
    """What a user clones, on free ports."""
    project = copy_project(tmp_path / "project")
    config = as_mapping(parse_properties(project.server_config.read_text(encoding=ENCODING)))
    project.server_config.write_text(render_properties(config | free_addresses()), encoding=ENCODING)
    # Its lock holds for one torch only, and finding a new one takes ten minutes.
    spec = project.spec("efficientnet_lite0")
    chosen = spec.read_text(encoding="utf-8")
    for found, given in (("precision: auto", "precision: float32"), ("engine: auto", "engine: torch")):
        assert found in chosen
        chosen = chosen.replace(found, given)
    spec.write_text(chosen, encoding="utf-8")
    spec.with_suffix(".lock").unlink()
    yield project
    lifecycle.stop(project, timeout_s=0)


def marsmith(project: Project, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "marsmith", *arguments],
        env=os.environ | {PROJECT_VARIABLE: str(project.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_default_model_goes_from_weights_to_an_answer(clone: Project) -> None:
    marsmith(clone, "export", "efficientnet_lite0")
    marsmith(clone, "archive", "efficientnet_lite0")
    marsmith(clone, "serve")
    answer = marsmith(clone, "predict", "efficientnet_lite0", "package:skimage/data/chelsea.png")
    assert {"tabby", "tiger cat", "Egyptian cat"} & {
        line.rpartition("  ")[0].strip() for line in answer.splitlines()[:4]
    }
    marsmith(clone, "stop")
