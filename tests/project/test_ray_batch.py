"""A batch on a real Ray cluster of two nodes, and an archive as a step of Ray Data."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from marsmith.cli import main
from support.batches import light_archive, parts_of, write_inputs
from support.long_tests import long
from support.projects import REPOSITORY

PYTHON = REPOSITORY / ".venv-ray" / "bin" / "python"
COUNT = 60


def run_in_ray(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script with Ray's Python, which finds this project's packages behind its own."""
    if not PYTHON.exists():
        pytest.skip("Ray is not installed: make heavy")
    paths = [REPOSITORY / "src", REPOSITORY / "tests", sysconfig.get_paths()["purelib"], os.environ["PYTHONPATH"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [str(PYTHON), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@long("batch")
@pytest.mark.usefixtures("light_workers")
@pytest.mark.parametrize("options", [[], ["lose"]], ids=["two nodes", "one node lost"])
def test_a_batch_on_two_nodes_makes_the_parts_that_one_machine_makes(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = light_archive(tmp_path / "light")
    inputs = write_inputs(tmp_path / "in", [b"bad" if number % 9 == 4 else b"x" * number for number in range(COUNT)])
    script = REPOSITORY / "tests" / "support" / "ray_cluster.py"
    done = run_in_ray(script, archive, inputs, tmp_path / "to", *options)
    assert done.stdout.splitlines()[-1] == "3", done.stdout + done.stderr
    assert ("a node is lost" in done.stderr) == bool(options)
    assert main(["batch", str(archive), str(inputs), "--to", "one", "--shard-rows", "4"]) == 3
    assert parts_of(tmp_path / "to") == parts_of(tmp_path / "one")


PIPELINE = """
import os, sys
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
import ray
from marsmith.scoring.ray import Archive
ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, logging_level="error")
photos = ray.data.read_binary_files(sys.argv[2], include_paths=True)
for kind in ("default", "pyarrow"):
    how = {"fn_constructor_args": [sys.argv[1]], "concurrency": 1, "num_cpus": 1, "batch_format": kind}
    answers = photos.map_batches(Archive, **how)
    rows = sorted((row["path"][-7:], row["status"], row["reply"] or row["error"]) for row in answers.take_all())
    print(rows)
"""


@long("batch")
@pytest.mark.usefixtures("light_workers")
def test_an_archive_is_a_step_of_ray_data(tmp_path: Path) -> None:
    archive = light_archive(tmp_path / "light")
    inputs = write_inputs(tmp_path / "in", [b"x", b"bad"])
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    done = run_in_ray(tmp_path / "pipeline.py", archive, inputs)
    expected = str([("000.bin", 200, '{\n  "short": 0.5,\n  "long": 0.5\n}'), ("001.bin", 422, "a bad one")])
    assert done.stdout.splitlines()[-2:] == [expected, expected], done.stdout + done.stderr


def test_a_cluster_that_is_not_there_or_a_missing_ray_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, inputs = light_archive(tmp_path / "light"), write_inputs(tmp_path / "in", [b"x"])
    arguments = ["batch", str(archive), str(inputs), "--to", str(tmp_path / "to")]
    assert main([*arguments, "--on", "dask"]) == 2
    assert "--on 'dask' is not an engine" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        assert main([*arguments, "--on", "ray"]) == 1
    assert "TIP: pip install 'marsmith[ray]'" in capsys.readouterr().err


@long("batch")
def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    archive, inputs = light_archive(tmp_path / "light"), write_inputs(tmp_path / "in", [b"x"])
    done = run_in_ray("-m", "marsmith", "batch", archive, inputs, "--to", tmp_path / "to", "--on", "ray:127.0.0.1:9")
    assert done.returncode == 1
    assert "no Ray cluster 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
