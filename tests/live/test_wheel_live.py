"""From the wheel to an answer: a project that `marsmith new` makes serves its model, and passes its own test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from marsmith.config.properties import ENCODING, as_mapping, parse_properties, render_properties
from support.live_server import free_addresses
from support.projects import skip_without_locked_torch
from support.wheels import installed_wheel, run


def make(root: Path, target: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(["make", target], cwd=root, env=kept, capture_output=True, text=True, check=False)


def test_a_project_of_the_wheel_serves_its_model_and_passes_its_own_test(tmp_path: Path) -> None:
    skip_without_locked_torch("the lock of the default model")
    python = installed_wheel(tmp_path)
    root = tmp_path / "a project"
    run(str(python), "-m", "marsmith", "new", str(root))
    config = root / "config.properties"
    own = as_mapping(parse_properties(config.read_text(encoding=ENCODING)))
    config.write_text(render_properties(own | free_addresses()), encoding=ENCODING)
    try:
        served = make(root, "serve")
        assert served.returncode == 0, served.stderr
        assert "tiger cat" in served.stdout
        # Another call finds everything done.
        assert make(root, "serve").returncode == 0
        tested = make(root, "test")
        assert tested.returncode == 0, tested.stderr
    finally:
        stopped = make(root, "clean")
    assert stopped.returncode == 0, stopped.stderr
    assert not (root / "model_store" / "efficientnet_lite0-1.0.mar").exists()
