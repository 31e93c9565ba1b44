from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from marsmith.archive import Archive
from marsmith.archive.verify import verify
from marsmith.build.optimize.graph import largest_difference, rebuild, rebuilt_or_same
from marsmith.build.optimize.rebuild import Optimized, optimize
from marsmith.build.optimize.replies import compare_replies
from marsmith.build.optimize.source import new_config
from marsmith.build.optimize.task import OptimizeOptions
from marsmith.client import Client
from marsmith.config.form import BASE
from marsmith.config.lint import lint_paths
from marsmith.errors import ArchiveError, BuildError, ConfigError, ExportError, HostileArchiveError, UsageError
from marsmith.inputs import read_input
from marsmith.project import Project
from marsmith.runtime.runner import RunnerReply
from support.export_fixtures import QUICK
from support.live_server import make_project, running
from support.long_tests import long
from support.projects import copy_project
from support.tampered_archives import entries_of, rewrite

PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
OPENVINO = OptimizeOptions(precision="float32", engine="openvino")
# Two labels have one name, as two ImageNet classes are called crane.
LABELS = {str(number): [f"n{number}", f"label {number // 2 if number < 2 else number}"] for number in range(12)}
CUSTOM = """
import io
import torch
from PIL import Image
from torchvision import transforms
from ts.torch_handler.base_handler import BaseHandler

class Mine(BaseHandler):
    def preprocess(self, data):
        prepare = transforms.Compose([transforms.Resize((32, 48)), transforms.ToTensor()])
        return torch.stack([prepare(Image.open(io.BytesIO(row["body"])).convert("RGB")) for row in data])
    def postprocess(self, data):
        assert self.model_yaml_config["mine"] == {"deep": [1, 2]}
        return [{"scores": row.tolist(), "best": int(row.argmax())} for row in data]
"""


class Net(nn.Module):
    """A confident network with convolutions, batch norms and branches; ``waste`` is work that freezing saves."""

    def __init__(self, waste: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(inplace=True))
        self.last = nn.Linear(8, 12)
        self.waste = nn.Parameter(torch.eye(waste))
        with torch.no_grad():
            self.last.weight.mul_(40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.second(x)
        ones = self.waste @ self.waste @ self.waste @ self.waste
        return self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)) * ones[0, 0]


def save(module: nn.Module, path: Path, size: tuple[int, int] = (224, 224)) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module.eval(), torch.zeros(2, 3, *size), check_trace=False), path)
    return path


def pack(folder: Path, serialized_file: Path, *options: str, handler: str = "image_classifier") -> Path:
    """Run torch-model-archiver, which deletes a folder in the temporary folder, in one of its own."""
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "old", "--version", "1.0"]
    command += ["--serialized-file", str(serialized_file), "--handler", handler, "--export-path", str(folder)]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    subprocess.run([*command, "--force", *options], check=True, capture_output=True, env=environment)
    return folder / "old.mar"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        (folder / name).write_bytes(read_input(f"package:skimage/data/{name}", Path.cwd()).body)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(tmp_path_factory.mktemp("optimize") / "project")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    labels, notes, config = folder / "index_to_name.json", folder / "notes.txt", folder / "run.yaml"
    labels.write_text(json.dumps(LABELS))
    notes.write_text("kept as it is")
    config.write_text("minWorkers: 1\nmaxWorkers: 1\nresponseTimeout: 55\npt2: inductor_off\nmaxBatchDelay: 0\n")
    config.write_text(config.read_text().replace("pt2: inductor_off\n", ""))
    file = save(Net(), folder / "net.pt")
    return pack(folder, file, "--extra-files", f"{labels},{notes}", "--config-file", str(config))


@pytest.fixture(scope="module")
def optimized(project: Project, stock: Path, photos: Path) -> Optimized:
    # So small a module may be slower there: how long it takes here and now must not decide.
    options = OptimizeOptions(precision="float32", engine="openvino", examples=photos, must_be_faster=False)
    return optimize(project, stock, options, effort=QUICK)


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_stock_archive_becomes_one_of_ours_and_keeps_what_is_not_replaced(optimized: Optimized, stock: Path) -> None:
    old, new = contents(stock), contents(optimized.path)
    manifest = json.loads(new["MAR-INF/MANIFEST.json"])
    config = yaml.safe_load(new["model-config.yaml"])
    assert optimized.path.name == "old-1.0-optimized.mar"
    assert manifest["model"]["modelName"] == "old"
    assert manifest["model"]["modelVersion"] == "1.0-optimized"
    assert manifest["model"]["handler"] == "image_classifier_handler.py"
    assert "net.pt" not in new
    assert "run.yaml" not in new
    assert {name: new[name] for name in ("index_to_name.json", "notes.txt")} == {
        name: old[name] for name in ("index_to_name.json", "notes.txt")
    }
    assert (config["responseTimeout"], config["minWorkers"], config["maxBatchDelay"]) == (55, 1, 1)
    assert config["handler"]["engine"] == "openvino"
    assert (config["handler"]["resize"], config["handler"]["crop"]) == (256, [224, 224])
    assert verify(Archive.open(optimized.path)).ok


class Checked(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.mean() > 2):
            raise ValueError("overexposed")
        x = self.first(x)
        return self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def test_a_module_that_checks_values_stays_torchscript_and_checks_them(
    project: Project, photos: Path, tmp_path: Path
) -> None:
    """White is 2.6 after normalising: the old archive refuses it, and so must the new one."""
    torch.manual_seed(0)
    old = pack(tmp_path, scripted(Checked(), tmp_path / "net.pt"))
    options = OptimizeOptions(precision="float32", examples=photos, version="2.0", must_be_faster=False)
    done = optimize(project, old, options, effort=QUICK)
    assert done.form == BASE
    reasons = {one["form"]: one["reason"] for one in done.report["candidates"] if one["verdict"] != "passed"}
    assert "would drop what model.pt raises for some inputs (overexposed)" in reasons["torchscript/float32/openvino"]
    (tmp_path / "new.pt").write_bytes(contents(done.path)["model.pt"])
    new = torch.jit.load(tmp_path / "new.pt")
    assert new(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 12)
    with pytest.raises(torch.jit.Error, match="overexposed"):
        new(torch.full((1, 3, 224, 224), 255, dtype=torch.uint8))


def test_lint_finds_nothing_in_what_was_written(project: Project, optimized: Optimized) -> None:
    assert lint_paths([optimized.path], project.root, cores=64) == []


def test_what_was_measured_and_where_it_comes_from_stands_in_the_archive(optimized: Optimized, photos: Path) -> None:
    new = contents(optimized.path)
    report = json.loads(new["MAR-INF/export.json"])
    examples = json.loads(new["MAR-INF/examples/examples.json"])
    assert report["form"] == "torchscript/float32/openvino"
    assert report["optimizedFrom"]["archive"] == "old.mar"
    assert report["optimizedFrom"]["handler"] == "image_classifier"
    assert report["repliesComparedWithOld"]["requests"] == report["repliesComparedWithOld"]["sameTop1"] == len(PHOTOS)
    assert report["measuredWith"] == f"4 images of {photos.name}"
    assert "openvino==" in new["MAR-INF/environment.txt"].decode()
    assert len(examples) == 3
    assert {f"MAR-INF/examples/{one['input']}" for one in examples} <= new.keys()


@pytest.mark.live
def test_the_new_archive_answers_a_live_server_as_the_old_one_does(
    optimized: Optimized, stock: Path, tmp_path: Path, photos: Path
) -> None:
    # A delay of 0 is an error of lint's, and serve leaves such an archive out.
    fixed = Path(shutil.copy(stock, tmp_path / "fixed.mar"))
    config = entries_of(fixed)["run.yaml"].replace(b"maxBatchDelay: 0", b"maxBatchDelay: 1")
    rewrite(fixed, {**entries_of(fixed), "run.yaml": config})
    archives = {"old-1.0.mar": fixed, optimized.path.name: optimized.path}
    project = make_project(tmp_path / "project", archives, load_models="all")
    with running(project) as state, Client.for_project(project) as client:
        assert state.left_out == ()
        for path in sorted(photos.iterdir()):
            old = client.predict("old", path.read_bytes(), version="1.0").json()
            new = client.predict("old", path.read_bytes(), version="1.0-optimized").json()
            assert next(iter(old)) == next(iter(new))
            assert len(old) == len(new)
            assert [new[label] for label in old if label in new] == pytest.approx(
                [old[label] for label in old if label in new], abs=0.01
            )
            assert list(new.values()) == sorted(new.values(), reverse=True)


def test_an_existing_archive_is_not_replaced_without_force_nor_the_old_one_ever(
    project: Project, optimized: Optimized, stock: Path
) -> None:
    before = optimized.path.read_bytes(), stock.read_bytes()
    with pytest.raises(BuildError, match="already exists"):
        optimize(project, stock, OPENVINO)
    with pytest.raises(UsageError, match="would replace the old one"):
        optimize(project, stock, OptimizeOptions(output=stock, force=True))
    assert (optimized.path.read_bytes(), stock.read_bytes()) == before


def test_a_handler_of_the_archives_own_stays_and_its_module_takes_and_gives_the_same(
    project: Project, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CUSTOM)
    config = tmp_path / "model-config.yaml"
    config.write_text("minWorkers: 1\nmine: {deep: [1, 2]}\n")
    torch.manual_seed(0)
    file = save(Net(waste=400), tmp_path / "weights.pt", (32, 48))
    old = pack(tmp_path, file, "--config-file", str(config), handler=str(tmp_path / "mine.py"))
    # Here it must be faster: more rounds, so that a pause of the machine does not decide it.
    effort = replace(QUICK, rounds=5)
    done = optimize(project, old, OptimizeOptions(precision="float32", examples=photos, version="2.0"), effort=effort)
    new = contents(done.path)
    manifest = json.loads(new["MAR-INF/MANIFEST.json"])["model"]
    settings = yaml.safe_load(new["model-config.yaml"])
    assert (manifest["handler"], manifest["serializedFile"], manifest["modelVersion"]) == (
        "mine.py",
        "weights.pt",
        "2.0",
    )
    assert new["mine.py"].decode() == CUSTOM
    assert settings["mine"] == {"deep": [1, 2]}
    assert settings["batchSize"] == 1
    assert new["weights.pt"] != file.read_bytes()
    (tmp_path / "new.pt").write_bytes(new["weights.pt"])
    images = torch.rand(3, 3, 32, 48)
    with torch.inference_mode():
        assert torch.allclose(torch.jit.load(tmp_path / "new.pt")(images), torch.jit.load(file)(images), atol=1e-3)
    assert done.agreement.same_top1 == len(PHOTOS)
    assert not list(tmp_path.glob(".*"))


def test_an_engine_that_a_handler_of_its_own_cannot_run_is_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CUSTOM)
    old = pack(tmp_path, save(Net(), tmp_path / "net.pt"), handler=str(tmp_path / "mine.py"))
    with pytest.raises(UsageError, match="cannot run openvino"):
        optimize(project, old, OptimizeOptions(engine="openvino"))


class Dictionary(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": x}


class Map(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def scripted(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)
    return path


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(
            lambda path: scripted(Dictionary(), path), "gives a dict, not a tensor", marks=long("export"), id="dict"
        ),
        (lambda path: scripted(Map(), path), r"gives float32 \(3, 3, 224, 224\), not float32 \(3, classes\)"),
        pytest.param(
            lambda path: scripted(nn.Linear(7, 2), path),
            r"does not take float32 \(3, 3, 224, 224\)",
            marks=long("export"),
            id="vectors",
        ),
        (lambda path: torch.save(Net().state_dict(), path), "not a complete TorchScript file"),
    ],
)
def test_what_is_no_image_classifier_is_refused_with_what_was_seen(
    project: Project, tmp_path: Path, photos: Path, write: Callable[[Path], Any], message: str
) -> None:
    write(tmp_path / "net.pt")
    old = pack(tmp_path, tmp_path / "net.pt")
    with pytest.raises(ExportError, match=message):
        optimize(project, old, OptimizeOptions(examples=photos))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".mar"] == ["old.mar"]


def test_an_eager_module_is_refused_with_the_way_to_go(project: Project, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class Net: ...\n")
    torch.save({}, tmp_path / "net.pth")
    old = pack(tmp_path, tmp_path / "net.pth", "--model-file", str(tmp_path / "model.py"))
    with pytest.raises(ArchiveError, match=r"eager module: the class in model\.py") as raised:
        optimize(project, old, OptimizeOptions())
    assert "recipe" in str(raised.value.tip)
    assert "marsmith export" in str(raised.value.tip)


def test_other_stock_handlers_and_archives_that_marsmith_exported_are_refused(
    project: Project, optimized: Optimized, tmp_path: Path
) -> None:
    old = pack(tmp_path, save(Net(), tmp_path / "net.pt"), handler="object_detector")
    with pytest.raises(ArchiveError, match="object_detector"):
        optimize(project, old, OptimizeOptions())
    with pytest.raises(ArchiveError, match="exported by marsmith already"):
        optimize(project, optimized.path, OptimizeOptions())


def test_a_hostile_archive_is_refused_and_nothing_is_written(project: Project, stock: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.mar"
    shutil.copy(stock, hostile)
    with zipfile.ZipFile(hostile, "a") as archive:
        archive.writestr("../outside.txt", "x")
    with pytest.raises(HostileArchiveError, match="outside"):
        optimize(project, hostile, OptimizeOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.mar"]


def test_a_folder_without_images_is_refused(project: Project, stock: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches no image"):
        optimize(project, stock, OptimizeOptions(examples=tmp_path, version="3"))
    with pytest.raises(UsageError, match="is not a folder"):
        optimize(project, stock, OptimizeOptions(examples=tmp_path / "none", version="3"))


def test_the_rebuilt_module_is_eager_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    script = torch.jit.load(save(Net(), tmp_path / "net.pt", (32, 32)))
    made = rebuild(script)
    assert not isinstance(made, torch.jit.ScriptModule)
    assert sum(isinstance(layer, nn.Conv2d) for layer in made.modules()) == 2
    assert largest_difference(script, made, (32, 32)) < 1e-5


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return x.mean((2, 3))
        return x.amax((2, 3))


def test_a_module_with_control_flow_stays_as_it_is(tmp_path: Path) -> None:
    script = torch.jit.load(scripted(Branches(), tmp_path / "net.pt"))
    with pytest.raises(ExportError, match="prim::If"):
        rebuild(script)
    assert rebuilt_or_same(script, (8, 8)) is script


def reply(value: object, status: int = 200) -> RunnerReply:
    return RunnerReply(status, "application/json", {}, json.dumps(value).encode())


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (reply({"a": 0.6, "b": 0.3}, 500), "status 500 instead of 200"),
        (reply({"a": 0.6}), "1 labels instead of 2"),
        (reply({"b": 0.6, "a": 0.3}), "'b' is the top label instead of 'a'"),
        (reply({"b": 0.3, "a": 0.6}), "no longer sorted"),
        (reply(["a", "b"]), "a.json"),
    ],
)
def test_replies_that_differ_are_refused(new: RunnerReply, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compare_replies(["a.json"], [reply({"a": 0.6, "b": 0.3})], [new], 0.01)


def test_replies_within_the_precision_agree_also_where_two_labels_were_level() -> None:
    old, new = reply({"a": 0.405, "b": 0.4}), reply({"b": 0.407, "a": 0.4})
    found = compare_replies(["1", "2"], [old, old], [old, new], 0.01)
    assert (found.requests, found.same_top1) == (2, 1)
    assert found.largest_difference == pytest.approx(0.007)


def test_the_model_config_keeps_its_keys_and_always_has_the_seven() -> None:
    old = {"minWorkers": 3, "responseTimeout": 7, "mine": 1}
    stock, own = new_config(old, stock=True, cores=2), new_config(old, stock=False, cores=2)
    assert (stock.dropped, own.dropped) == (("mine",), ())
    assert yaml.safe_load(own.render({})) == {
        "minWorkers": 3,
        "maxWorkers": 3,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "responseTimeout": 7,
        "startupTimeout": 120,
        "maxRetryTimeoutInSec": 30,
        "mine": 1,
    }
    assert yaml.safe_load(stock.render({"top_k": 5}))["handler"] == {"top_k": 5}
    assert new_config({}, stock=False, cores=2).serving.max_workers == 2
    with pytest.raises(ConfigError, match="batchSize"):
        new_config({"batchSize": "many"}, stock=True, cores=2)
