"""One TorchServe, and in it a version for each engine."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from marsmith.client import Client
from marsmith.config.form import Form
from marsmith.export.formats.torchscript import reference_images
from marsmith.export.image_graph import ImageGraph
from marsmith.export.recipes.recipe import load_recipe
from marsmith.export.serialize import serialize
from marsmith.run_state import RunState
from support.engine_fixtures import PREPROCESSING, archive_folder, packed, small_graph, small_pt2
from support.live_server import make_project, running
from support.projects import REPOSITORY
from support.vision_fixtures import photo

CAT = "tiger cat"
# What each version is set to, and the engine that must answer.
VERSIONS = {
    "torch": "torch",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "missing": "torch",
    "pt2": "aot_inductor",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunState]:
    root = tmp_path_factory.mktemp("engines")
    folders = _folders(root)
    archives = {f"{name}.mar": packed(folder, root / f"{name}.mar") for name, folder in folders.items()}
    project = make_project(root / "project", archives, disable_token_authorization="true")
    # Five workers import torch at once.
    with running(project, timeout_s=280) as state:
        yield state


def _folders(root: Path) -> dict[str, Path]:
    recipe = load_recipe(REPOSITORY / "export" / "efficientnet_lite0.py")
    assert recipe.bundled_weights is not None
    network = recipe.build()
    network.load_state_dict(torch.load(recipe.bundled_weights(), weights_only=True))
    graph = ImageGraph(network, recipe.preprocessing).eval()
    files = {}
    for text in ("torchscript/float32/torch", "onnx/float32/onnxruntime"):
        form = Form.parse(text)
        (root / form.format).mkdir()
        images = [torch.zeros(3, 224, 224, dtype=torch.uint8)] * 2
        files[form.format] = serialize(graph, form, images=images, folder=root / form.format)
    settings: dict[str, Any] = {"resize": 256, "crop": [224, 224], "interpolation": "bicubic"}
    folders = {}
    for name, form_format in (("torch", "torchscript"), ("openvino", "torchscript"), ("onnxruntime", "onnx")):
        model = {"modelName": name}
        folders[name] = archive_folder(root / name, files[form_format], recipe.labels(), model, engine=name, **settings)
    folders["missing"] = _without_openvino(folders["openvino"], root / "missing")
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


@pytest.mark.parametrize("model", VERSIONS)
def test_each_engine_answers_in_its_worker_and_is_described(server: RunState, model: str) -> None:
    told = _described(server, model)
    assert (told["engine"], told["precision"]) == (VERSIONS[model], "float32")
    assert bool(told["engine_fell_back"]) == (model == "missing")


def test_all_engines_see_the_cat(server: RunState) -> None:
    import skimage.data

    body = Path(skimage.data.__file__).with_name("chelsea.png").read_bytes()
    with Client(inference=server.inference, management=server.management) as client:
        replies = {model: client.predict(model, body).json() for model in VERSIONS if model != "pt2"}
    best = {model: next(iter(reply.items())) for model, reply in replies.items()}
    assert {label for label, _ in best.values()} == {CAT}
    for probability in (value for _, value in best.values()):
        assert probability == pytest.approx(best["torch"][1], abs=1e-5)


def test_pt2_gives_what_the_eager_module_gives(server: RunState) -> None:
    body = photo(3, (48, 48))
    (image,) = reference_images([body], PREPROCESSING)[:1]
    with torch.inference_mode():
        wanted = small_graph()(image[None])[0].sort(descending=True).values[:3].tolist()
    with Client(inference=server.inference, management=server.management) as client:
        assert list(client.predict("pt2", body).json().values()) == pytest.approx(wanted, abs=1e-4)
