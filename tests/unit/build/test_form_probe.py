from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch

from marsmith.build import build_from_spec
from marsmith.config import load_spec
from marsmith.errors import HandlerError, MarsmithError
from marsmith.project import Project
from marsmith.runtime.form_probe import photo
from marsmith.runtime.runner import Request, Runner
from support.export_fixtures import write_tiny
from support.long_tests import mostly_long
from support.projects import REPOSITORY

PAGE = (REPOSITORY / "docs" / "how-to" / "handler.md").read_text(encoding="utf-8")


def from_the_page(start: str) -> str:
    """Return the block of code on the page that begins so."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if block.startswith(start))


@pytest.fixture
def mood(project: Project) -> Project:
    """The files of the page on handlers, as a user saves them."""
    (project.root / "handlers" / "mood_handler.py").write_text(from_the_page('"""Text to a mood."""'))
    (project.root / "handlers" / "glad.txt").write_text("what a day :)\n")
    (project.root / "export" / "mood.py").write_text(from_the_page("import torch\n\nfrom marsmith.export import"))
    (project.specs / "mood.yaml").write_text(from_the_page("name: mood"))
    return project


def with_spec(project: Project, old: str, new: str) -> Project:
    path = project.specs / "mood.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return project


def test_what_the_page_on_handlers_says_builds_and_answers(mood: Project) -> None:
    built = build_from_spec(mood, load_spec(mood, "mood"))
    with zipfile.ZipFile(built.path) as archive:
        assert json.loads(archive.read("MAR-INF/export.json"))["weights"] == {"source": "none"}
        assert json.loads(archive.read("MAR-INF/examples/examples.json"))[0]["reply"] == {"mood": "glad"}
    with Runner(built.path) as runner:
        (reply,) = runner.run([Request(b"oh :(", "text/plain")])
    assert json.loads(reply.body) == {"mood": "sad"}


def test_a_recipe_without_parameters_needs_no_word_about_weights(mood: Project) -> None:
    with_spec(mood, ", weights: none", "")
    with_spec(mood, "examples: [{input: handlers/glad.txt}]\n", "")
    assert build_from_spec(mood, load_spec(mood, "mood")).path.is_file()


def test_a_torchscript_file_that_is_no_classifier_is_refused_at_the_build(mood: Project) -> None:
    torch.jit.script(torch.nn.Identity()).save(str(mood.root / "mood.pt"))
    with_spec(mood, "export/mood.py, weights: none", "torchscript:mood.pt")
    with_spec(mood, "examples: [{input: handlers/glad.txt}]\n", "")
    with pytest.raises(MarsmithError, match=r"an image classifier gives \(N, classes\)"):
        build_from_spec(mood, load_spec(mood, "mood"))
    assert not list(mood.model_store.iterdir())


class Classifier(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))


def test_a_handler_that_cannot_take_the_form_is_refused_at_the_build(mood: Project) -> None:
    torch.jit.script(Classifier()).save(str(mood.root / "mood.pt"))
    with_spec(mood, "export/mood.py, weights: none", "torchscript:mood.pt")
    with_spec(mood, "examples: [{input: handlers/glad.txt}]\n", "")
    with pytest.raises(
        HandlerError, match=r"takes a text, and cannot give it .* \(any, 3, 224, 224\): infer failed"
    ) as caught:
        build_from_spec(mood, load_spec(mood, "mood"))
    assert "TensorRecipe" in str(caught.value.tip)
    assert not list(mood.model_store.iterdir())


@pytest.mark.parametrize(
    "handler",
    mostly_long("export", ["image_classifier_handler.py", "tensor_handler.py"], ["tensor_handler.py"]),
)
def test_a_handler_that_takes_the_form_is_built_without_examples(project: Project, handler: str) -> None:
    spec = write_tiny(project).specs / "tiny.yaml"
    text = spec.read_text().partition("examples:")[0].replace("image_classifier_handler.py", handler)
    if handler == "tensor_handler.py":
        (project.root / "export" / "tiny.py").write_text(
            "import torch\nfrom marsmith.export import TensorRecipe\n"
            "RECIPE = TensorRecipe(build=lambda: torch.nn.Linear(3, 2), examples=lambda: [{'x': torch.zeros(2, 3)}])\n"
        )
    spec.write_text(text)
    assert build_from_spec(project, load_spec(project, "tiny")).path.is_file()


def test_the_photo_is_one(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photo.png").write_bytes(photo())
    with Image.open(tmp_path / "photo.png") as image:
        assert (image.size, image.mode, image.getpixel((3, 3))) == ((64, 64), "RGB", (127, 127, 127))
