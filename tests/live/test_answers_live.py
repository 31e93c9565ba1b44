"""An archive of bfloat16 on a machine that computes in float32: everybody accepts its answers, or nobody.

The engine of the archive is not there, so another one steps in, in float32, as it does on a processor without bfloat16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marsmith.archive import Archive
from marsmith.archive.store import examples_in
from marsmith.cli import main
from marsmith.client import Client
from marsmith.config.form import Form
from marsmith.deploy.rollout.probes import Prober
from marsmith.errors import HandlerError
from marsmith.export.serialize import serialize
from marsmith.run_state import RunState
from marsmith.runtime import Runner
from marsmith.runtime.replay import ExampleRequest, replay, usual_tolerance, validate_examples
from support.engine_fixtures import archive_folder, packed, pictures, small_graph
from support.handler_fixtures import npy, write_examples, write_manifest
from support.live_server import make_project, running
from support.vision_fixtures import photo

pytestmark = pytest.mark.tensors

SETTINGS: dict[str, Any] = {"engine": "openvino", "precision": "bfloat16"}
# How far the validated replies are from what float32 gives: more than bfloat16 allows, less than a fallback may.
OFF = 0.08
BODY = photo(0, (60, 60))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier and a segmenter-like reply in bytes, each validated ``OFF`` away from what answers here."""
    root = tmp_path_factory.mktemp("bfloat16")
    (root / "files").mkdir()
    files = serialize(small_graph(), Form.parse("torchscript/float32/torch"), images=pictures(2), folder=root / "files")
    classifier = archive_folder(root / "classifier", files, model={"modelName": "classifier"}, **SETTINGS)
    tensors = root / "tensors"
    shutil.copytree(classifier, tensors)
    manifest = write_manifest(tensors, "tensor_handler.py", modelName="tensors")
    (tensors / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", **manifest}))
    image = pictures(1)[0].numpy()
    requests = {"classifier": ("a.png", BODY, "image/png"), "tensors": ("a.npy", npy(image), "application/x-npy")}
    return {name: _validated(root / name, *request) for name, request in requests.items()}


def _validated(folder: Path, name: str, body: bytes, content_type: str) -> Path:
    """Let the archive answer without its engine, and record replies that are ``OFF`` away."""
    (folder / "openvino.py").write_text("raise ModuleNotFoundError('no OpenVINO here')\n")
    with Runner(folder, batch_size=1) as runner:
        assert usual_tolerance(runner, "bfloat16") == 0.1
        (example,) = validate_examples(runner, [ExampleRequest(name, body, content_type, 0.05)])
    record, files = example.record(), {name: body}
    if example.recorded is not None:
        array = np.lib.format.read_array(BytesIO(example.recorded))
        files[f"{name}.reply"] = npy((array + OFF).astype(array.dtype))
        record["reply_sha256"] = "0" * 64
    else:
        record["reply"] = {label: value - OFF for label, value in example.reply.items()}
    write_examples(folder, [record], files)
    return packed(folder, folder.with_suffix(".mar"))


@pytest.fixture(scope="module")
def server(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunState]:
    stored = {f"{name}.mar": path for name, path in archives.items()}
    project = make_project(tmp_path_factory.mktemp("server") / "project", stored, disable_token_authorization="true")
    # That it starts is what `serve` says: each version has answered its example.
    with running(project) as state:
        yield state


@pytest.mark.parametrize("model", ["classifier", "tensors"])
def test_what_the_worker_accepts_serve_and_the_probe_of_a_deploy_accept(
    server: RunState, archives: dict[str, Path], model: str
) -> None:
    with Client(inference=server.inference, management=server.management) as client:
        facts = client.handler_facts(model, "1.0")
        assert (facts["precision"], bool(facts["engine_fell_back"])) == ("float32", True)
        (example,) = examples_in(Archive.open(archives[model]))
        probe = Prober(client, model, (example,)).ask("1.0", example)
    assert (probe.answered, probe.problem) == (True, None)


@pytest.mark.parametrize("model", ["classifier", "tensors"])
def test_what_the_worker_accepts_verify_accepts(
    archives: dict[str, Path], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(archives[model]) == []
    assert main(["verify", "--replay", str(archives[model])]) == 0
    assert "1 examples got their validated replies" in capsys.readouterr().out


def test_what_is_further_off_is_refused_by_the_worker_and_so_by_all(archives: dict[str, Path], tmp_path: Path) -> None:
    folder = Archive.open(archives["classifier"]).extract(tmp_path / "model")
    file = folder / "MAR-INF" / "examples" / "examples.json"
    record = json.loads(file.read_text())
    record[0]["reply"] = {label: value - OFF for label, value in record[0]["reply"].items()}
    file.write_text(json.dumps(record))
    with pytest.raises(HandlerError, match=r"tolerance 0\.1"):
        replay(folder)
