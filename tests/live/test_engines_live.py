"""One TorchServe, and in it a version for each engine."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from marsmith.client import Client
from marsmith.config.form import Form
from marsmith.export.formats.torchscript import reference_images
from marsmith.export.image_graph import ImageGraph
from marsmith.export.recipes.recipe import Recipe, load_recipe
from marsmith.export.serialize import serialize
from marsmith.run_state import RunState
from support.engine_fixtures import PREPROCESSING, archive_folder, packed, small_graph, small_pt2
from support.live_server import make_project, running
from support.long_tests import long
from support.projects import REPOSITORY
from support.vision_fixtures import photo

pytestmark = pytest.mark.tensors

CAT = "tiger cat"
# What each version is set to, and the engine that must answer.
VERSIONS = {
    "torch": "torch",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "missing": "torch",
    "pt2": "aot_inductor",
}


# Those of `make test` need no export into another format.
FEW = ["torch", "openvino", "missing"]
ALL = pytest.param([*VERSIONS], id="all", marks=long("export"))


@dataclass
class Served:
    """A server, and the versions that it serves."""

    state: RunState
    models: list[str]


@pytest.fixture(scope="module", params=[pytest.param(FEW, id="few"), ALL])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("engines")
    folders = _folders(root, request.param)
    archives = {f"{name}.mar": packed(folder, root / f"{name}.mar") for name, folder in folders.items()}
    project = make_project(root / "project", archives, disable_token_authorization="true")
    # Its workers import torch at once.
    with running(project, timeout_s=280) as state:
        yield Served(state, request.param)


def _folders(root: Path, models: list[str]) -> dict[str, Path]:
    recipe = load_recipe(REPOSITORY / "export" / "efficientnet_lite0.py")
    assert isinstance(recipe, Recipe)
    assert recipe.bundled_weights is not None
    network = recipe.build()
    network.load_state_dict(torch.load(recipe.bundled_weights(), weights_only=True))
    graph = ImageGraph(network, recipe.preprocessing).eval()
    files = {}
    for text in ("torchscript/float32/torch", *(["onnx/float32/onnxruntime"] if "onnxruntime" in models else [])):
        form = Form.parse(text)
        (root / form.format).mkdir()
        images = [torch.zeros(3, 224, 224, dtype=torch.uint8)] * 2
        files[form.format] = serialize(graph, form, images=images, folder=root / form.format)
    settings: dict[str, Any] = {"resize": 256, "crop": [224, 224], "interpolation": "bicubic"}
    folders = {}
    assert callable(recipe.labels)
    labels = [str(label) for label in recipe.labels()]
    formats = {"torch": "torchscript", "openvino": "torchscript", "onnxruntime": "onnx"}
    for name, form_format in formats.items():
        if form_format not in files:
            continue
        model = {"modelName": name}
        folders[name] = archive_folder(root / name, files[form_format], labels, model, engine=name, **settings)
    folders["missing"] = _without_openvino(folders["openvino"], root / "missing")
    if "pt2" in models:
        folders["pt2"] = archive_folder(root / "pt2", small_pt2(), model={"modelName": "pt2"}, engine="aot_inductor")
    return folders


def _without_openvino(source: Path, target: Path) -> Path:
    """The same archive as on a machine without OpenVINO: a module in its folder is found before an installed one."""
    shutil.copytree(source, target)
    (target / "openvino.py").write_text("raise ModuleNotFoundError('no OpenVINO here')\n")
    manifest = target / "MAR-INF" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"openvino"', '"missing"'))
    return target


def _described(state: RunState, model: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{state.management}/models/{model}/1.0?customized=true", timeout=30) as reply:
        told = json.loads(reply.read())[0]["customizedMetadata"]
    return dict(json.loads(told)) if isinstance(told, str) else dict(told)


def test_each_engine_answers_in_its_worker_and_is_described(server: Served) -> None:
    for model in server.models:
        told = _described(server.state, model)
        assert (told["engine"], told["precision"]) == (VERSIONS[model], "float32"), model
        assert bool(told["engine_fell_back"]) == (model == "missing"), model


def test_all_engines_see_the_cat(server: Served) -> None:
    import skimage.data

    body = Path(skimage.data.__file__).with_name("chelsea.png").read_bytes()
    with Client(inference=server.state.inference, management=server.state.management) as client:
        replies = {model: client.predict(model, body).json() for model in server.models if model != "pt2"}
    best = {model: next(iter(reply.items())) for model, reply in replies.items()}
    assert {label for label, _ in best.values()} == {CAT}
    for probability in (value for _, value in best.values()):
        assert probability == pytest.approx(best["torch"][1], abs=1e-5)


@pytest.mark.parametrize("server", [ALL], indirect=True)
def test_pt2_gives_what_the_eager_module_gives(server: Served) -> None:
    body = photo(3, (48, 48))
    (image,) = reference_images([body], PREPROCESSING)[:1]
    with torch.inference_mode():
        wanted = small_graph()(image[None])[0].sort(descending=True).values[:3].tolist()
    with Client(inference=server.state.inference, management=server.state.management) as client:
        assert list(client.predict("pt2", body).json().values()) == pytest.approx(wanted, abs=1e-4)
