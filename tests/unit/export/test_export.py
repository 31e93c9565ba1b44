from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from marsmith.config import load_spec
from marsmith.config.form import BASE
from marsmith.errors import ExportError
from marsmith.export import export_model
from marsmith.export.crops import reference_images
from marsmith.export.formats.torchscript import load_torchscript
from marsmith.export.inputs import gather
from marsmith.export.job import open_job
from marsmith.export.messages import JobRequest
from marsmith.export.recipes.recipe import Recipe, load_recipe
from marsmith.project import Project
from support.export_fixtures import RECIPE, write_tiny


@pytest.fixture
def tiny(project: Project) -> Project:
    return write_tiny(project)


def _export(project: Project, **options: str) -> tuple[Path, dict[str, object], bool]:
    export = export_model(project, load_spec(project, "tiny"), **options)  # type: ignore[arg-type]
    return export.serialized_file, export.report, export.reused


def _request(project: Project, folder: Path, **fields: object) -> JobRequest:
    folder.mkdir(parents=True, exist_ok=True)
    made = gather(project, load_spec(project, "tiny")).request(BASE, folder, cores=1)
    return replace(made, **fields)  # type: ignore[arg-type]


def test_the_serialized_file_takes_pixels_and_returns_probabilities(tiny: Project) -> None:
    path, report, _ = _export(tiny)
    module = load_torchscript(path)
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    probabilities = module(pixels)
    assert probabilities.shape == (5, 4)
    assert torch.allclose(probabilities.sum(1), torch.ones(5))
    assert report["weights"] == {"source": "random", "seed": 0}
    assert report["form"] == "torchscript/float32/torch"
    assert json.loads((path.parent / "index_to_name.json").read_text()) == {"0": "a", "1": "b", "2": "c", "3": "d"}
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "export.json",
        "index_to_name.json",
        "measured.json",
        "model.pt",
        "stamp.json",
    ]


def test_nothing_is_exported_twice_and_a_changed_recipe_is(tiny: Project) -> None:
    first = _export(tiny)[0].read_bytes()
    assert _export(tiny)[2] is True
    recipe = tiny.root / "export" / "tiny.py"
    os.utime(recipe)
    assert _export(tiny)[2] is True
    recipe.write_text(RECIPE.replace("padding=1", "padding=0"))
    path, _, reused = _export(tiny)
    assert reused is False
    assert path.read_bytes() != first


def test_two_exports_in_two_places_give_the_same_bytes(tiny: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "elsewhere")
    (tiny.root).rename(tmp_path / "first")
    first = Project(tmp_path / "first")
    content = _export(first)[0].read_bytes()
    first.root.rename(other.root)
    for file in other.exports.rglob("*.*"):
        file.unlink()
    assert _export(other)[0].read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RECIPE = Recipe", "OTHER = Recipe", "defines no RECIPE"),
        ("import torch\n", "import torch\nraise ValueError('no')\n", "raises when it is imported: ValueError: no"),
        ("build=Tiny", "build=lambda: 1 / 0", "raises ZeroDivisionError"),
        ("build=Tiny", "build=lambda: 'x'", "returns str, not a torch.nn.Module"),
        ('list("abcd")', 'list("abc")', "3 labels, and the module 4 outputs"),
        ('list("abcd")', "{'a': 0, 'b': 1, 'c': 2, 'd': 4}", "name output 4, and not 3"),
        ('list("abcd")', "[][0]", r"labels\(\) of the recipe raises IndexError"),
        (".mean((2, 3))", "", r"outputs of the shape \(2, 4, 8, 8\)"),
        (".mean((2, 3))", ".mean((2, 3)) * float('nan')", "eager module gives values that are not finite"),
        (".mean((2, 3))", ".mean((2, 3))[:2]", "axis 0 of every output must be the batch|a batch of 3"),
        (".mean((2, 3))", ".mean((2, 3)).view(8, 4)", "does not take a batch of 2"),
        ("return self.norm", "assert x.max() < 9e9; return self.norm", "takes a value out of a tensor"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_and_leaves_nothing(
    tiny: Project, tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tiny.root / "export" / "tiny.py").write_text(RECIPE.replace(old, new))
    folder = tmp_path / "out"
    with pytest.raises(ExportError, match=message):
        open_job(_request(tiny, folder), lambda _: None).run()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated|not a torch.save file|no torch.save file"),
        (b"PK\x03\x04 cut short", "truncated|not a torch.save file|no torch.save file"),
        (None, "the weights do not fit the module"),
    ],
    ids=["empty", "truncated", "of another architecture"],
)
def test_weights_that_are_damaged_or_anothers_are_refused(
    tiny: Project, tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tiny.root / "weights.pth"
    if content is None:
        torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    else:
        file.write_bytes(content)
    with pytest.raises(ExportError, match=message):
        open_job(_request(tiny, tmp_path / "out", weights="weights.pth"), lambda _: None).run()
    assert not list((tmp_path / "out").iterdir())


def test_what_a_recipe_prints_disturbs_nothing_and_a_recipe_that_ends_the_process_is_named(tiny: Project) -> None:
    recipe = tiny.root / "export" / "tiny.py"
    recipe.write_text("print('hello')\n" + RECIPE)
    steps: list[str] = []
    export_model(tiny, load_spec(tiny, "tiny"), on_step=steps.append)
    assert len(steps) == 3
    recipe.write_text("import os; os._exit(3)\n" + RECIPE)
    with pytest.raises(ExportError, match="exit code 3"):
        _export(tiny)


def test_a_failed_export_leaves_the_last_one(tiny: Project) -> None:
    before = _export(tiny)[0].read_bytes()
    with pytest.raises(ExportError, match="no weights"):
        _export(tiny, weights="missing.pth")
    assert (tiny.exports / "tiny" / "model.pt").read_bytes() == before
    assert _export(tiny)[2] is True


def test_the_default_model_knows_a_cat_an_espresso_and_a_missile(built_project: Project) -> None:
    folder = built_project.exports / "efficientnet_lite0"
    photos = Path(torch.__file__).parents[1] / "skimage" / "data"
    names = ["chelsea.png", "coffee.png", "rocket.jpg"]
    recipe = load_recipe(built_project.root / "export" / "efficientnet_lite0.py")
    assert isinstance(recipe, Recipe)
    images = reference_images([(photos / name).read_bytes() for name in names], recipe.preprocessing)[0:6:2]
    with torch.inference_mode():
        probabilities = load_torchscript(folder / "model.pt")(torch.stack(images))
    labels = json.loads((folder / "index_to_name.json").read_text())
    assert [labels[str(int(i))] for i in probabilities.argmax(1)] == ["tiger cat", "espresso", "missile"]
    assert float(probabilities[1].max()) > 0.9


NET = """\
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3)
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))
"""
OWN = """\
from models.net import Net

from marsmith.export import ImagePreprocessing, Recipe

LABELS = {"cow": 2, "ant": 0, "bee": 1}
RECIPE = Recipe(build=Net, preprocessing=ImagePreprocessing(resize=16, crop=(8, 8)), labels=LABELS)
"""


def test_a_project_as_people_have_it_is_exported(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network at the project's root, a checkpoint of Lightning from before torch 0.4.1, class_to_idx for labels."""
    root = tiny.root
    (root / "models").mkdir()
    (root / "models" / "net.py").write_text(NET)
    (root / "export" / "tiny.py").write_text(OWN)
    # Names of the standard library, in the working folder.
    for name in ("queue", "statistics"):
        (root / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    names: dict[str, Any] = {}
    exec(NET, names)
    state = names["Net"]().state_dict()
    del state["norm.num_batches_tracked"]
    wrapped = {f"model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": {**wrapped, "loss.weight": torch.ones(3)}, "epoch": 1}, root / "last.ckpt")
    monkeypatch.chdir(root)
    with pytest.raises(ExportError, match="Missing key") as caught:
        export_model(tiny, load_spec(tiny, "tiny"), weights="last.ckpt")
    assert "--strip-prefix model." in str(caught.value.tip)
    export = export_model(tiny, load_spec(tiny, "tiny"), weights="last.ckpt", strip_prefix="model.")
    assert json.loads(export.labels_file.read_text()) == {"0": "ant", "1": "bee", "2": "cow"}
    weights = export.report["weights"]
    assert (weights["entry"], weights["stripped"], weights["leftOut"]) == ("state_dict", "model.", 1)
