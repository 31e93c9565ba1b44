"""`marsmith new --from`: models of packages and files, from the name to an archive that answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from marsmith import Runner
from marsmith.build import build_from_spec
from marsmith.cli import main
from marsmith.config import load_spec
from marsmith.errors import ExportError
from marsmith.export import ImagePreprocessing, Recipe, export_model
from marsmith.export.recipes.recipe import load_recipe
from marsmith.inputs import read_input
from marsmith.project import Project
from marsmith.runtime import Request
from support.long_tests import long

NETWORK = """
import torch


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 4, 7, stride=32)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.body(images).mean(dim=(2, 3)))
"""


def network() -> torch.nn.Module:
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, scope)
    torch.manual_seed(7)
    return scope["Network"]().eval()


def traced(path: Path, *, probabilities: bool = False) -> Path:
    module = torch.nn.Sequential(network(), *([torch.nn.Softmax(dim=1)] if probabilities else [])).eval()
    torch.jit.trace(module, torch.zeros(2, 3, 224, 224)).save(path)
    return path


def new(folder: Path, source: str) -> Project:
    assert main(["new", str(folder), "--from", source]) == 0
    return Project(folder.resolve())


def make_test(project: Project, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    command = ["make", "test", *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, cwd=project.root, env=kept, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_torchscript_classifier_becomes_a_project(tmp_path: Path, probabilities: bool) -> None:
    file = traced(tmp_path / "old net.pt", probabilities=probabilities)
    project = new(tmp_path / "project", f"torchscript:{file}")
    assert (project.root / "export" / "old_net.pt").read_bytes() == file.read_bytes()
    recipe = (project.root / "export" / "old_net.py").read_text()
    assert f'output="{"probabilities" if probabilities else "logits"}"' in recipe
    if probabilities:
        assert build_from_spec(project, load_spec(project, "old_net")).path.name == "old_net-1.0.mar"


@long("export")
def test_a_project_of_a_torchscript_classifier_passes_its_own_test(tmp_path: Path) -> None:
    project = new(tmp_path / "project", f"torchscript:{traced(tmp_path / 'old net.pt')}")
    done = make_test(project)
    assert done.returncode == 0, done.stderr
    assert (project.model_store / "old_net-1.0.mar").is_file()


def _takes_vectors(path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros(1, 4)).save(path)


def _gives_maps(path: Path) -> None:
    torch.jit.trace(torch.nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 224, 224)).save(path)


def _is_a_state_dict(path: Path) -> None:
    torch.save(network().state_dict(), path)


def _is_text(path: Path) -> None:
    path.write_text("not a model")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_takes_vectors, "does not take photos"),
        (_gives_maps, "and a classifier gives (2, classes)"),
        (_is_a_state_dict, "is not a complete TorchScript file"),
        (_is_text, "is not a complete TorchScript file"),
    ],
)
def test_a_torchscript_file_that_is_no_classifier_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], said: str
) -> None:
    file = tmp_path / "model.pt"
    make(file)
    assert main(["new", str(tmp_path / "project"), "--from", f"torchscript:{file}"]) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert "TIP: " in errors
    assert not (tmp_path / "project").exists()


def test_a_checkpoint_gets_a_recipe_with_one_place_to_fill_in_and_its_test_says_so(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "cats.pth")
    project = new(tmp_path / "project", f"checkpoint:{tmp_path / 'cats.pth'}")
    recipe = project.root / "export" / "cats.py"
    text = recipe.read_text()
    assert text.count("FILL IN") == 1
    assert "head.weight  (3, 4)" in text
    done = make_test(project)
    assert done.returncode == 2
    assert "fill it in, in export/cats.py: which module was cats.pth saved from?" in done.stderr

    (project.root / "export" / "network.py").write_text(NETWORK)
    raising = next(line for line in text.splitlines() if "raise NotImplementedError" in line)
    recipe.write_text(text.replace(raising, "    from network import Network\n    return Network()"))
    built = build_from_spec(project, load_spec(project, "cats"))
    assert built.path.name == "cats-1.0.mar"


def test_a_checkpoint_s_entry_and_the_names_in_it_are_data(tmp_path: Path) -> None:
    hostile = 'x\nimport os\nos.abort()\n"""'
    state = OrderedDict({hostile: torch.zeros(2, 2), "ünter": torch.zeros(2)})
    torch.save({"state_dict": state, "ema": state}, tmp_path / "run.ckpt")
    project = new(tmp_path / "project", f"checkpoint:{tmp_path / 'run.ckpt'}#ema")
    spec = load_spec(project, "run")
    assert spec.export.weights == "export/run.ckpt#ema"
    with pytest.raises(ExportError, match="fill it in"):
        build_from_spec(project, spec)


class Secret:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_a_checkpoint_that_could_run_code_is_refused_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Secret()}, "cats.pth")
    assert main(["new", "project", "--from", "checkpoint:cats.pth"]) == 1
    assert "loading it could run code" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats.pth"]


@pytest.mark.parametrize(
    ("source", "near"),
    [
        ("torchvision:resnet81", "resnet18"),
        ("torchvision:resnet18@IMAGENET1K_V9", "IMAGENET1K_V1"),
        ("timm:resnet81", "resnet18"),
    ],
)
def test_a_name_that_a_package_does_not_know_gets_the_nearest_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, near: str
) -> None:
    assert main(["new", str(tmp_path / "project"), "--from", source]) == 2
    errors = capsys.readouterr().err
    assert near in errors
    assert "TIP: " in errors
    assert not (tmp_path / "project").exists()


def test_a_classifier_of_torchvision_passes_its_own_test_without_a_network(tmp_path: Path) -> None:
    project = new(tmp_path / "project", "torchvision:squeezenet1_1")
    assert load_spec(project, "squeezenet1_1").export.weights == "hub"
    done = make_test(project, WEIGHTS="random")
    assert done.returncode == 0, done.stderr


def test_a_classifier_of_timm_needs_timm_in_the_project(tmp_path: Path) -> None:
    project = new(tmp_path / "project", "timm:mobilenetv3_small_050.lamb_in1k")
    assert "marsmith[all,timm]==" in (project.root / "requirements.txt").read_text()
    spec = load_spec(project, "mobilenetv3_small_050.lamb_in1k")
    assert spec.export.recipe == "timm:mobilenetv3_small_050.lamb_in1k"
    assert sys.executable in (project.root / "local.mk").read_text()


def onnx_file(path: Path, module: torch.nn.Module, *inputs: torch.Tensor, dynamic: bool = True) -> Path:
    batch = torch.export.Dim("N")
    torch.onnx.export(
        module.eval(),
        inputs,
        path,
        dynamo=True,
        dynamic_shapes=tuple({0: batch} for _ in inputs) if dynamic else None,
        verbose=False,
        external_data=False,
    )
    return path


def test_an_onnx_file_is_served_as_it_is(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "rank.onnx", torch.nn.Linear(4, 3), torch.zeros(2, 4))
    project = new(tmp_path / "project", f"onnx:{file}")
    spec = load_spec(project, "rank")
    built = build_from_spec(project, spec)
    with Runner(built.path) as runner:
        given = read_input(spec.examples[0].input, project.root)
        good, wrong = runner.run([Request(given.body, given.content_type), Request(b"[1]", "application/json")])
        assert len(good.json()) == 3
        assert wrong.status == 422
        assert (runner.folder / "model.onnx").read_bytes() == file.read_bytes()
    report = json.loads((project.exports / "rank" / "export.json").read_text())
    assert report["parity"]["against"] == "ONNX Runtime"
    with pytest.raises(ExportError, match="no form to choose by measuring"):
        export_model(project, spec, relock=True)
    with pytest.raises(ExportError, match="is served as it is"):
        export_model(project, spec, overrides={"format": "torchscript"})


def test_an_onnx_file_of_one_row_at_a_time_gets_batches_of_one(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "one.onnx", torch.nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 32, 32), dynamic=False)
    project = new(tmp_path / "project", f"onnx:{file}")
    spec = load_spec(project, "one")
    assert spec.serving.batch_size == 1
    assert spec.examples[0].input == "examples/one.npy"


@long("export")
def test_a_project_of_an_onnx_file_of_one_row_passes_its_own_test(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "one.onnx", torch.nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 32, 32), dynamic=False)
    done = make_test(new(tmp_path / "project", f"onnx:{file}"))
    assert done.returncode == 0, done.stderr


def hand_made(path: Path, inputs: list[str], *nodes: onnx.NodeProto) -> None:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in [*inputs, "y"]]
    graph = onnx.helper.make_graph(list(nodes), "graph", values[:-1], values[-1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def _mixes_rows(path: Path) -> None:
    mean = onnx.helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=1)
    hand_made(path, ["x"], mean, onnx.helper.make_node("Sub", ["x", "mean"], ["y"]))


def _takes_two(path: Path) -> None:
    hand_made(path, ["a", "b"], onnx.helper.make_node("Add", ["a", "b"], ["y"]))


def _loses_numbers(path: Path) -> None:
    negative = onnx.helper.make_node("Neg", ["x"], ["below"])
    hand_made(path, ["x"], negative, onnx.helper.make_node("Log", ["below"], ["y"]))


def _fixes_the_batch(path: Path) -> None:
    onnx_file(path, torch.nn.Linear(4, 3), torch.zeros(5, 4), dynamic=False)


def _is_cut(path: Path) -> None:
    _mixes_rows(path)
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_mixes_rows, "answers a row otherwise alone"),
        (_loses_numbers, "values that are not finite"),
        (_takes_two, "takes 2 tensors and gives 1"),
        (_fixes_the_batch, "takes batches of 5 only"),
        (_is_cut, "is not one whole ONNX file"),
        (_is_text, "is not one whole ONNX file"),
    ],
)
def test_an_onnx_file_that_cannot_be_served_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], said: str
) -> None:
    file = tmp_path / "model.onnx"
    make(file)
    assert main(["new", str(tmp_path / "project"), "--from", f"onnx:{file}"]) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert "TIP: " in errors
    assert not (tmp_path / "project").exists()


@long("export")
def test_a_folder_of_timm_becomes_a_project(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_resnet", num_classes=3)
    folder = tmp_path / "cats and dogs"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "label_names": ["cat", "dog", 'neither """'],
        "pretrained_cfg": {**vars(model)["pretrained_cfg"], "num_classes": 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    project = new(tmp_path / "project", f"huggingface:{folder}")
    spec = load_spec(project, "cats_and_dogs")
    assert export_model(project, spec).labels_file.read_text().count("neither") == 1
    assert "marsmith[all,timm]" in (project.root / "requirements.txt").read_text()


def test_a_folder_of_transformers_becomes_a_project_that_answers_like_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label={0: "cat", 1: "dog", 2: "bird"}
    )
    model = transformers.ResNetForImageClassification(config).eval()
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    processor = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "image_std": [0.25] * 3}))
    project = new(tmp_path / "project", f"huggingface:{folder}")
    recipe = load_recipe(project.root / "export" / "tiny.py")
    assert isinstance(recipe, Recipe)
    assert recipe.preprocessing == ImagePreprocessing(256, (224, 224), (0.5,) * 3, (0.25,) * 3, "bicubic")
    export = export_model(project, load_spec(project, "tiny"))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        got = torch.jit.load(export.serialized_file)(images)
        want = model(pixel_values=(images / 255 - 0.5) / 0.25).logits.softmax(dim=1)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
    assert json.loads(export.labels_file.read_text()) == {"0": "cat", "1": "dog", "2": "bird"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there is no config.json in it"),
        ({"config.json": "{"}, "is not JSON"),
        ({"config.json": "[]"}, "is not a JSON object"),
        ({"config.json": "{}"}, "there is no model.safetensors in it"),
        (
            {"config.json": '{"architectures": ["BertModel"]}', "model.safetensors": ""},
            "its architecture is 'BertModel'",
        ),
        ({"config.json": '{"architecture": "resnet81"}', "model.safetensors": ""}, "timm has no model 'resnet81'"),
        (
            {"config.json": '{"architectures": ["\\"\\"\\"ForImageClassification"]}', "model.safetensors": ""},
            "can be taken",
        ),
    ],
)
def test_a_folder_that_cannot_be_taken_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], said: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    assert main(["new", str(tmp_path / "project"), "--from", f"huggingface:{folder}"]) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert "TIP: " in errors
    assert not (tmp_path / "project").exists()
