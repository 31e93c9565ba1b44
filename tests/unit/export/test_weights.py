from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from marsmith.errors import ExportError, MissingDependencyError
from marsmith.export import ImagePreprocessing, Recipe
from marsmith.export.recipes.weights import apply_weights, load_weights


def _recipe(**options: Any) -> Recipe:
    return Recipe(build=lambda: torch.nn.Linear(2, 3), preprocessing=ImagePreprocessing(), labels=list, **options)


class Payload:
    """What a hostile pickle looks like: loading it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("kind", ["pth", "nested", "safetensors"])
def test_a_state_dict_is_read_whatever_it_is_kept_in(kind: str, tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    weights = load_weights(path.name, _recipe(), tmp_path)
    module = torch.nn.Linear(2, 3)
    apply_weights(module, weights)
    assert torch.equal(module.weight, state["weight"])
    assert weights.record["source"] == "file"
    assert len(weights.record["sha256"]) == 64


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "ema", "anything"])
def test_a_state_dict_beside_an_optimizers_is_found_and_its_place_recorded(key: str, tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    torch.save({key: linear.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7}, tmp_path / "w.pth")
    weights = load_weights("w.pth", _recipe(), tmp_path)
    assert weights.state is not None
    assert torch.equal(weights.state["weight"], linear.weight)
    assert weights.record["entry"] == key


def test_of_several_state_dicts_one_can_be_named(tmp_path: Path) -> None:
    plain, average = torch.nn.Linear(2, 3).state_dict(), torch.nn.Linear(2, 3).state_dict()
    torch.save({"model": plain, "model_ema": average}, tmp_path / "w.pth")
    chosen = load_weights("w.pth", _recipe(), tmp_path)
    assert chosen.record["entry"] == "model"
    assert chosen.record["otherEntries"] == ["model_ema"]
    named = load_weights("w.pth#model_ema", _recipe(), tmp_path)
    assert named.state is not None
    assert torch.equal(named.state["weight"], average["weight"])
    with pytest.raises(ExportError, match=r"under 'model_emma'; did you mean 'model_ema'\?"):
        load_weights("w.pth#model_emma", _recipe(), tmp_path)


def test_two_state_dicts_under_unusual_names_must_be_chosen_from(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    torch.save({"teacher": state, "student": state}, tmp_path / "w.pth")
    with pytest.raises(ExportError, match="'teacher', 'student'") as caught:
        load_weights("w.pth", _recipe(), tmp_path)
    assert "#KEY" in str(caught.value.tip)


def test_the_prefixes_of_wrappers_are_taken_off_and_recorded(tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    torch.save(torch.nn.DataParallel(linear).state_dict(), tmp_path / "parallel.pth")
    torch.save({"ema": torch.optim.swa_utils.AveragedModel(linear).state_dict()}, tmp_path / "ema.pth")
    torch.save({f"module._orig_mod.{k}": v for k, v in linear.state_dict().items()}, tmp_path / "compiled.pth")
    for name, prefix in [("parallel", "module."), ("ema", "module."), ("compiled", "module._orig_mod.")]:
        weights = load_weights(f"{name}.pth", _recipe(), tmp_path)
        apply_weights(torch.nn.Linear(2, 3), weights)
        assert weights.record["stripped"] == prefix


def test_a_whole_module_is_refused_unless_the_user_trusts_it(tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    torch.save(linear, tmp_path / "w.pth")
    with pytest.raises(ExportError, match="could run code") as caught:
        load_weights("w.pth", _recipe(), tmp_path)
    assert "--unsafe-weights" in str(caught.value.tip)
    weights = load_weights("w.pth", _recipe(), tmp_path, allow_pickle=True)
    assert weights.state is not None
    assert torch.equal(weights.state["bias"], linear.bias)
    assert weights.record["pickle"] is True


def test_a_trusted_pickle_that_cannot_be_loaded_says_what_is_missing(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "no" / "such" / "folder"), tmp_path / "w.pth")
    with pytest.raises(ExportError, match="cannot be unpickled: FileNotFoundError"):
        load_weights("w.pth", _recipe(), tmp_path, allow_pickle=True)


def test_a_torchscript_file_given_as_weights_is_named_with_the_way_out(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(tmp_path / "w.pt"))
    with pytest.raises(ExportError, match="is a TorchScript file") as caught:
        load_weights("w.pt", _recipe(), tmp_path)
    assert "torchscript:w.pt" in str(caught.value.tip)


def test_a_recipe_without_weights_of_its_own_takes_those_of_its_hub() -> None:
    weights = load_weights("recipe", _recipe(hub_weights=torch.nn.Linear(2, 3).state_dict), Path())
    assert weights.record["source"] == "hub"


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "ran"), tmp_path / "w.pth")
    with pytest.raises(ExportError, match="could run code"):
        load_weights("w.pth", _recipe(), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_weights_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state = torch.nn.Linear(50, 50).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ExportError, match=r"truncated|not a complete"):
        load_weights(path.name, _recipe(), tmp_path)


@pytest.mark.parametrize("source", ["recipe", "hub", "missing.pth"])
def test_weights_that_are_not_there_are_named_with_the_way_out(source: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        load_weights(source, _recipe(), tmp_path)
    assert "--weights random" in str(caught.value.tip)


def test_a_hub_out_of_reach_says_so(tmp_path: Path) -> None:
    def unreachable() -> Any:
        raise OSError("no route")

    with pytest.raises(ExportError, match=r"could not be reached: no route"):
        load_weights("hub", _recipe(hub_weights=unreachable), tmp_path)


def test_keys_that_do_not_fit_are_listed_with_the_nearest_ones(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 4).state_dict()
    torch.save({"weight": state["weight"], "biass": state["bias"]}, tmp_path / "w.pth")
    weights = load_weights("w.pth", _recipe(), tmp_path)
    with pytest.raises(ExportError) as caught:
        apply_weights(torch.nn.Linear(2, 3), weights)
    assert 'Missing key(s) in state_dict: "bias" (the file has "biass")' in caught.value.message
    assert 'Unexpected key(s) in state_dict: "biass"' in caught.value.message
    assert "size mismatch for weight: copying a param with shape torch.Size([4, 2])" in caught.value.message


def test_random_weights_are_recorded_as_such(tmp_path: Path) -> None:
    assert load_weights("random", _recipe(), tmp_path).record == {"source": "random", "seed": 0}


STAND_IN = """\
import shutil
from pathlib import Path

class MlflowException(Exception):
    pass

def download_artifacts(artifact_uri, dst_path):
    source = Path({root!r}) / artifact_uri.removeprefix("models:/")
    if not source.is_dir():
        raise MlflowException("Model Version not found\\nmore")
    return shutil.copytree(source, Path(dst_path) / "model")
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder NAME/VERSION, and a stand-in for MLflow that copies from it (the real one was tried by hand)."""
    package = tmp_path / "packages" / "mlflow"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "artifacts.py").write_text(STAND_IN.format(root=str(tmp_path / "registry")))
    (package / "exceptions.py").write_text("from mlflow.artifacts import MlflowException\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    version = tmp_path / "registry" / "cats" / "3"
    (version / "data").mkdir(parents=True)
    (version / "MLmodel").write_text("flavors: {pytorch: {model_data: data}, python_function: {}}\n")
    yield version
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        del sys.modules[name]


def test_a_registered_model_of_mlflow_gives_its_weights(registry: Path, tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    torch.save(linear, registry / "data" / "model.pth")
    torch.save({}, registry / "other.pth")
    with pytest.raises(ExportError, match="could run code"):
        load_weights("models:/cats/3", _recipe(), tmp_path)
    weights = load_weights("models:/cats/3", _recipe(), tmp_path, allow_pickle=True)
    assert weights.state is not None
    assert torch.equal(weights.state["weight"], linear.weight)
    assert (weights.record["source"], weights.record["file"], weights.file) == ("models:/cats/3", "model.pth", None)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/cats@champion", "is not a fixed version"),
        ("models:/cats/latest", "is not a fixed version"),
        ("models:/cats/4", "cannot return models:/cats/4: Model Version not found$"),
        ("models:/cats/3", "should hold one file with weights .*; it holds none"),
    ],
)
def test_a_model_that_mlflow_cannot_give_is_refused(uri: str, message: str, registry: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        load_weights(uri, _recipe(), tmp_path)


def test_a_record_of_mlflow_cannot_lead_out_of_the_model(registry: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "registry" / "cats" / "stolen.pth")
    (registry / "MLmodel").write_text("flavors: {pytorch: {model_data: ../..}}\n")
    with pytest.raises(ExportError, match="it holds none"):
        load_weights("models:/cats/3", _recipe(), tmp_path)


def test_without_mlflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", None)
    with pytest.raises(MissingDependencyError) as caught:
        load_weights("models:/cats/3", _recipe(), tmp_path)
    assert "marsmith[mlflow]" in str(caught.value.tip)
