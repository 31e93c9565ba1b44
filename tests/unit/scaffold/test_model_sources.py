"""`marsmith new --from`: models of packages and files, from the name to an archive that answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from marsmith.build import build_from_spec
from marsmith.cli import main
from marsmith.config import load_spec
from marsmith.errors import ExportError
from marsmith.project import Project

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
def test_a_torchscript_classifier_becomes_a_project_that_passes_its_own_test(
    tmp_path: Path, probabilities: bool
) -> None:
    file = traced(tmp_path / "old net.pt", probabilities=probabilities)
    project = new(tmp_path / "project", f"torchscript:{file}")
    assert (project.root / "export" / "old_net.pt").read_bytes() == file.read_bytes()
    recipe = (project.root / "export" / "old_net.py").read_text()
    assert f'output="{"probabilities" if probabilities else "logits"}"' in recipe
    if probabilities:
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, said: str
) -> None:
    file = tmp_path / "model.pt"
    make(file)  # type: ignore[operator]
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
