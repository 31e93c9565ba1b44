from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from marsmith.config.source_names import RecipeSource
from marsmith.errors import ExportError, MissingDependencyError
from marsmith.export import Expects, ImagePreprocessing, Recipe, TensorRecipe
from marsmith.export.image_graph import ImageGraph
from marsmith.export.recipes.source import open_recipe, recipe_files
from marsmith.export.recipes.torchscript import torchscript_recipe
from marsmith.export.recipes.weights import apply_weights, load_weights
from support.projects import REPOSITORY

PHOTO = Path(torch.__file__).parents[1] / "skimage" / "data" / "chelsea.png"


def opened(text: str, root: Path = REPOSITORY) -> Recipe:
    recipe = open_recipe(RecipeSource.parse(text), root)
    assert isinstance(recipe, Recipe)
    return recipe


def labels_of(recipe: Recipe) -> list[object]:
    assert callable(recipe.labels)
    return list(recipe.labels())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_large"])
def test_a_recipe_by_name_is_the_shipped_recipe_of_that_model(name: str) -> None:
    shipped, named = opened(f"export/{name}.py"), opened(f"torchvision:{name}")
    assert named.preprocessing == shipped.preprocessing
    assert labels_of(named) == labels_of(shipped)
    wanted = {key: value.shape for key, value in shipped.build().state_dict().items()}
    assert {key: value.shape for key, value in named.build().state_dict().items()} == wanted


def test_the_weights_of_a_name_can_be_chosen() -> None:
    assert opened("torchvision:resnet50@IMAGENET1K_V1").preprocessing.resize == 256
    assert opened("torchvision:resnet50@IMAGENET1K_V2").preprocessing.resize == 232


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision:resnet81", r"no classifier 'resnet81'; did you mean 'resnet\d+'\?"),
        ("torchvision:fcn_resnet50", "no classifier 'fcn_resnet50'"),
        ("torchvision:resnet18@V1", "no weights 'V1'"),
        ("timm:mobilenetv3_smal_050", "did you mean 'mobilenetv3_small_050'"),
        ("torchvison:resnet18", "did you mean 'torchvision'"),
        ("torchvision:", "is not a file or a known name"),
        ("torchscript:missing.pt", "no recipe at .*missing.pt"),
        ("export/missing.py", "no recipe at .*missing.py"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        open_recipe(RecipeSource.parse(text), REPOSITORY)


def test_what_an_export_depends_on_is_known_without_torch() -> None:
    named, file = RecipeSource.parse("timm:mobilenetv3_small_050"), RecipeSource.parse("export/resnet18.py")
    assert (recipe_files(named, REPOSITORY), named.packages(), named.label()) == (
        [],
        ["timm"],
        "timm:mobilenetv3_small_050",
    )
    assert (recipe_files(file, REPOSITORY), file.packages()) == ([REPOSITORY / "export" / "resnet18.py"], [])
    assert file.label() == "resnet18.py"


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_photo_reaches_a_timm_model_as_timms_own_transform_would_have_it(name: str) -> None:
    import timm
    from torchvision.transforms import v2

    recipe = opened(f"timm:{name}")
    data: Any = timm.data
    known = timm.models.get_pretrained_cfg(name)
    assert known
    config = data.resolve_data_config({}, pretrained_cfg=known.to_dict())
    photo = Image.open(PHOTO).convert("RGB")
    theirs = data.create_transform(**config)(photo)
    given = recipe.preprocessing
    mode = v2.InterpolationMode(given.interpolation)
    pixels = v2.Compose([v2.Resize(given.resize, mode), v2.CenterCrop(given.crop), v2.PILToTensor()])(photo)
    graph = ImageGraph(torch.nn.Identity(), given, Expects(output="probabilities"))
    assert torch.allclose(graph(pixels[None])[0], theirs, atol=1e-5)
    assert len(labels_of(recipe)) == 1000


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_recipe(RecipeSource.parse("timm:resnet18"), REPOSITORY)
    assert "marsmith[timm]" in str(caught.value.tip)


class Classifier(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((2, 3))


def test_an_existing_torchscript_file_is_a_recipe_and_needs_no_weights(tmp_path: Path) -> None:
    torch.jit.script(Classifier()).save(str(tmp_path / "old.pt"))
    recipe = opened("torchscript:old.pt", tmp_path)
    assert labels_of(recipe) == ["0", "1", "2"]
    weights = load_weights("recipe", recipe, tmp_path)
    assert weights.record["file"] == "old.pt"
    assert weights.file == tmp_path / "old.pt"
    module = recipe.build()
    apply_weights(module, weights)
    with pytest.raises(ExportError, match=r"contains its weights; 'w\.pth' cannot be used"):
        load_weights("w.pth", recipe, tmp_path)


@pytest.mark.parametrize(
    ("expects", "inside"),
    [
        (Expects(), lambda x: x),
        (Expects(pixels="unit"), lambda x: (x - 0.25) / 0.5),
        (Expects(pixels="uint8"), lambda x: (x / 255 - 0.25) / 0.5),
        (Expects(pixels="uint8", output="probabilities"), lambda x: (x / 255 - 0.25) / 0.5),
    ],
)
def test_the_graph_adds_what_the_module_does_not_do_itself(expects: Expects, inside: Any) -> None:
    class Module(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            scores = inside(pixels).mean((2, 3))
            return torch.softmax(scores, 1) if expects.output == "probabilities" else scores

    preprocessing = ImagePreprocessing(mean=(0.25,) * 3, std=(0.5,) * 3)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    wanted = torch.softmax(((pixels / 255 - 0.25) / 0.5).mean((2, 3)), 1)
    graph = ImageGraph(Module(), preprocessing, expects)
    assert torch.allclose(graph(pixels), wanted, atol=1e-6)


@pytest.mark.parametrize("expects", [Expects(), Expects(pixels="unit", output="probabilities"), Expects("uint8")])
def test_the_graph_can_be_scripted_whatever_the_module_expects(expects: Expects) -> None:
    graph = ImageGraph(Classifier(), ImagePreprocessing(), expects).eval()
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.allclose(torch.jit.freeze(torch.jit.script(graph))(pixels), graph(pixels), atol=1e-6)


def test_a_file_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ExportError, match="not a complete TorchScript file"):
        torchscript_recipe(tmp_path / "x.pt").build()


def test_a_recipe_may_be_for_anything_that_takes_tensors(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(
        "import torch\nfrom marsmith.export import TensorRecipe\n"
        "RECIPE = TensorRecipe(build=torch.nn.Bilinear, examples=lambda: [{'a': torch.zeros(1, 2)}])\n"
    )
    recipe = open_recipe(RecipeSource.parse("pair.py"), tmp_path)
    assert isinstance(recipe, TensorRecipe)
    assert list(recipe.examples()[0]) == ["a"]
