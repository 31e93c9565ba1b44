from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marsmith.config.source_names import RecipeSource
from marsmith.errors import ExportError, HandlerError, UsageError
from marsmith.export.recipes.imports import requirements
from marsmith.export.recipes.modules import find_in
from marsmith.export.recipes.recipe import Recipe, load_recipe
from marsmith.export.recipes.source import open_recipe, recipe_files
from marsmith.inputs import read_input
from marsmith.packages import install_tip, lies_in_project
from marsmith.runtime.imports import distributions
from support.projects import REPOSITORY

RECIPE = """\
{imports}
from marsmith.export import ImagePreprocessing, Recipe


def build():
    {inside}
    return made


RECIPE = Recipe(build=build, preprocessing=ImagePreprocessing(), labels=["a"])
"""


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "config" / "models").mkdir(parents=True)
    yield tmp_path
    find_in(())


def opened(root: Path, imports: str, inside: str) -> Recipe:
    lay(root, {"export/mine.py": RECIPE.format(imports=imports, inside=inside)})
    recipe = open_recipe(RecipeSource.parse("export/mine.py"), root)
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.mark.parametrize("package", ["", "models/__init__.py"], ids=["namespace", "package"])
def test_a_package_at_the_projects_root_is_found_by_recipe_and_builder(root: Path, package: str) -> None:
    lay(root, {"models/net.py": "from .parts import made\n", "models/parts.py": "made = 'the net'\n"})
    if package:
        lay(root, {package: ""})
    recipe = opened(root, "from models.net import made", "")
    assert recipe.build() == "the net"
    files = recipe_files(RecipeSource.parse("export/mine.py"), root)
    expected = ["export/mine.py", "models/net.py", "models/parts.py", *([package] if package else [])]
    assert sorted(file.relative_to(root).as_posix() for file in files) == sorted(expected)
    assert requirements(files, root) == requirements(files[:1], root)
    assert requirements(files, root).distributions == ()


def test_what_build_imports_when_it_is_called_is_found_as_well(root: Path) -> None:
    lay(root, {"models/__init__.py": "", "models/net.py": "made = 'late'\n", "export/beside.py": "x = 1\n"})
    assert opened(root, "", "import beside; from models.net import made").build() == "late"


def test_the_recipes_own_folder_comes_before_the_projects_root(root: Path) -> None:
    lay(root, {"export/parts.py": "made = 'beside'\n", "parts.py": "made = 'root'\n"})
    assert opened(root, "from parts import made", "").build() == "beside"


def test_two_projects_with_a_module_of_one_name_do_not_mix(root: Path) -> None:
    for name in ("first", "second"):
        lay(root / name, {"models/net.py": f"made = {name!r}\n"})
        assert opened(root / name, "from models.net import made", "").build() == name


def test_a_file_of_the_project_takes_no_place_of_the_standard_library_or_of_torch(root: Path) -> None:
    clash = "raise RuntimeError('shadowed')\n"
    lay(root, {f"{name}.py": clash for name in ("queue", "statistics", "torch", "numpy", "torchvision", "marsmith")})
    code = "import sys; from pathlib import Path; from marsmith.export.recipes.modules import find_in\n"
    code += f"find_in([Path({str(root)!r})])\nimport statistics, queue, numpy, torch, torchvision, marsmith.errors"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_of_data_does_not_hide_an_installed_package(root: Path) -> None:
    lay(root, {"skimage/photo.txt": "x", "PIL/notes.md": "x"})
    made: Any = opened(root, "import PIL.Image, skimage", "made = (PIL.__file__, skimage.__file__)").build()
    assert all(made)


def test_a_module_that_is_nowhere_is_named_and_no_package_is_guessed(root: Path) -> None:
    lay(root, {"export/mine.py": "import nowhere_at_all\nimport cv2_missing.deep\n"})
    files = recipe_files(RecipeSource.parse("export/mine.py"), root)
    with pytest.raises(ExportError, match=r"mine\.py:1: the module 'nowhere_at_all' is not installed") as caught:
        requirements(files, root)
    assert "pip install" not in str(caught.value.tip)
    assert "put nowhere_at_all.py beside the recipe or into the project's root" in str(caught.value.tip)
    with pytest.raises(ExportError, match="ModuleNotFoundError") as caught:
        load_recipe(root / "export" / "mine.py", root)
    assert "put nowhere_at_all.py beside the recipe" in str(caught.value.tip)


def test_a_module_in_another_folder_of_the_project_is_pointed_to(root: Path) -> None:
    lay(root, {"export/mine.py": "import models\n", "src/models/net.py": "", "model_store/models/x.py": ""})
    with pytest.raises(ExportError) as caught:
        requirements(recipe_files(RecipeSource.parse("export/mine.py"), root), root)
    assert str(root / "src" / "models") in str(caught.value.tip)
    assert "pip install" not in str(caught.value.tip)


@pytest.mark.parametrize("place", ["models/net.py", "models.py", "src/models/__init__.py", "export/models.py"])
def test_a_handler_is_never_told_to_install_what_lies_in_the_project(root: Path, place: str) -> None:
    lay(root, {"handlers/mine_handler.py": "import models\n\nclass H: ...\n", place: ""})
    with pytest.raises(HandlerError) as caught:
        distributions([root / "handlers" / "mine_handler.py"])
    assert "pip install" not in str(caught.value.tip)
    assert "an archive takes what lies beside the handler: move or copy" in str(caught.value.tip)


def test_only_packages_that_are_known_are_told_to_be_installed() -> None:
    assert install_tip("cv2") == "pip install opencv-python-headless"
    assert install_tip("timm") == "pip install timm"
    for module in ("models", "utils", "net", "my_timm", "common"):
        assert "pip install" not in install_tip(module)


def test_a_folder_without_any_source_is_no_module_of_the_project(root: Path) -> None:
    lay(root, {"models/weights.bin": "", ".venv/nets.py": "", "handlers/h.py": ""})
    assert lies_in_project("models", root / "handlers" / "h.py") is None
    assert lies_in_project("nets", root / "handlers" / "h.py") is None


def test_a_package_of_photos_that_is_not_installed_is_not_guessed(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_input("package:photos_of_mine/a.png", root)
    assert "pip install" not in str(caught.value.tip)


def test_a_recipe_may_import_marsmith_and_others_from_a_source_path(root: Path, tmp_path: Path) -> None:
    """As where marsmith is run from a checkout: PYTHONPATH=src python -m marsmith."""
    shutil.copytree(REPOSITORY / "src" / "marsmith", tmp_path / "source" / "marsmith")
    lay(tmp_path / "source", {"loose/__init__.py": "made = 1\n", "loose/part.py": ""})
    lay(root, {"export/mine.py": RECIPE.format(imports="from loose import made", inside="")})
    code = "import json, marsmith; from pathlib import Path; from marsmith.export.recipes.imports import requirements\n"
    code += f"found = requirements([Path({str(root / 'export' / 'mine.py')!r})], Path({str(root)!r}))\n"
    code += "print(json.dumps([marsmith.__file__, list(found.distributions), found.loose]))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "source")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    where, names, loose = json.loads(done.stdout)
    assert Path(where).is_relative_to(tmp_path / "source")
    assert names == []
    assert sorted(loose["loose"]) == ["loose/__init__.py", "loose/part.py"]


def test_a_handler_that_imports_marsmith_from_a_source_path_is_told_what_a_server_has(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marsmith.packages._editable_owner", lambda _: [])
    monkeypatch.setattr("marsmith.packages._top_level", lambda _: set())
    lay(root, {"handlers/h.py": "import marsmith.errors\n"})
    with pytest.raises(HandlerError) as caught:
        distributions([root / "handlers" / "h.py"])
    assert "a server need not have marsmith" in str(caught.value.tip)
    assert "marsmith.py" not in str(caught.value.tip)
