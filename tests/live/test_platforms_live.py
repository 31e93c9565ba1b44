"""The contracts of SageMaker and Vertex AI, kept by `marsmith serve` itself, as in their containers."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.errors import MarsmithError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.server import lifecycle
from support.handler_fixtures import CLASSES, ChannelMeans
from support.live_server import free_ports, make_project, until
from support.packed_classifiers import pack_classifier
from support.pictures import picture
from support.raw_calls import call

pytestmark = pytest.mark.tensors

PHOTO = picture(60, 40, 10)


@pytest.fixture(scope="module")
def archive(light_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_classifier(tmp_path_factory.mktemp("platforms") / "work", "colours", "1.0", ChannelMeans())


@contextmanager
def container(project: Project, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the image's command in a container's environment, until the platform ends it with SIGTERM."""
    command = [sys.executable, "-m", "marsmith", "serve", *arguments]
    process = subprocess.Popen(command, env={**os.environ, PROJECT_VARIABLE: str(project.root), **environment})
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in {0, 128 + signal.SIGTERM}
        with pytest.raises(MarsmithError):
            run_state.read(project)
    finally:
        process.kill()
        process.wait()
        lifecycle.stop(project, timeout_s=0)


def healthy(process: subprocess.Popen[bytes], url: str, path: str) -> bool:
    assert process.poll() is None, "it has ended"
    try:
        return call(url, "GET", path).status == 200
    except OSError:
        return False


def test_sagemaker_runs_the_image_with_serve_and_needs_no_token(archive: Path, tmp_path: Path) -> None:
    project, [port] = make_project(tmp_path / "project"), free_ports(1)
    # What SageMaker unpacks of model.tar.gz: the archive's own members.
    with zipfile.ZipFile(archive) as members:
        members.extractall(tmp_path / "ml" / "model")
    url = f"http://127.0.0.1:{port}"
    variables = {"SAGEMAKER_BASE_DIR": str(tmp_path / "ml"), "SAGEMAKER_BIND_TO_PORT": str(port)}
    with container(project, "serve", **variables) as process:
        until(lambda: healthy(process, url, "/ping"))
        answer = call(url, "POST", "/invocations", body=PHOTO, headers={"Content-Type": "image/jpeg"})
        assert answer.status == 200
        assert set(json.loads(answer.body)) == set(CLASSES)
        assert call(url, "POST", "/invocations", body=b"noise").status == 415
        assert call(url, "GET", "/ready").status == 200
        state = run_state.read(project)
        assert call(state.management, "GET", "/models").status == 400, "management needs a token"
        assert state.management.startswith("http://127.0.0.1:")


def test_vertex_says_port_paths_and_folder_in_variables(archive: Path, tmp_path: Path) -> None:
    project, [port] = make_project(tmp_path / "project"), free_ports(1)
    (tmp_path / "artifacts").mkdir()
    shutil.copy(archive, tmp_path / "artifacts" / "model.mar")
    url, predict = f"http://127.0.0.1:{port}", "/v1/endpoints/7/deployedModels/8:predict"
    variables = {"AIP_HTTP_PORT": str(port), "AIP_HEALTH_ROUTE": "/v1/health", "AIP_PREDICT_ROUTE": predict}
    with container(project, AIP_STORAGE_URI=str(tmp_path / "artifacts"), **variables) as process:
        until(lambda: healthy(process, url, "/v1/health"))
        instances = [{"b64": base64.b64encode(PHOTO).decode()}] * 2
        asked = json.dumps({"instances": instances}).encode()
        answer = call(url, "POST", predict, body=asked, headers={"Content-Type": "application/json"})
        assert answer.status == 200
        assert [set(each) for each in json.loads(answer.body)["predictions"]] == [set(CLASSES)] * 2
