from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

from marsmith.errors import HandlerError
from marsmith.packages import Providers
from marsmith.runtime.imports import distributions, local_imports, third_party
from marsmith.runtime.library import _FORMER_MODULES
from support.projects import REPOSITORY

HANDLERS = REPOSITORY / "handlers"
LIBRARY = HANDLERS / "marsmith_handler"


def lay(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files, and return the one that is called handler.py."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "handler.py"


def local_names(entry: Path) -> list[str]:
    return [file.relative_to(entry.parent).as_posix() for file in local_imports(entry)]


def loaded_by_python(entry: Path) -> set[Path]:
    """Import the handler in a fresh process, as a worker does, and return the files that it loaded from its folder."""
    code = "import json, sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2])\n"
    code += "print(json.dumps([getattr(m, '__file__', None) for m in sys.modules.values()]))"
    command = [sys.executable, "-B", "-c", code, str(entry.parent), entry.stem]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {Path(file) for file in json.loads(output) if file and Path(file).is_relative_to(entry.parent)}


def test_modules_beside_the_handler_are_found_through_one_another(tmp_path: Path) -> None:
    files = {
        "handler.py": "import json\nimport first\n",
        "first.py": "from second import thing\n",
        "second.py": "import first\nthing = 1\n",
        "unused.py": "",
    }
    assert local_names(lay(tmp_path, files)) == ["first.py", "second.py"]


def test_imports_inside_functions_count(tmp_path: Path) -> None:
    assert local_names(lay(tmp_path, {"handler.py": "def f():\n    import late\n", "late.py": ""})) == ["late.py"]


def test_imports_for_type_checkers_and_for_scripts_do_not_count(tmp_path: Path) -> None:
    text = (
        "import typing\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import only_types\nelse:\n    import at_run_time\n"
        "if typing.TYPE_CHECKING:\n    import no_such_stub\n"
        "if not TYPE_CHECKING:\n    import also_at_run_time\n"
        "if __name__ == '__main__':\n    import script\n"
    )
    names = ["only_types.py", "at_run_time.py", "also_at_run_time.py", "script.py"]
    entry = lay(tmp_path, {"handler.py": text, **dict.fromkeys(names, "")})
    assert local_names(entry) == ["also_at_run_time.py", "at_run_time.py"]


def test_of_a_package_the_files_that_are_reached_are_found(tmp_path: Path) -> None:
    files = {
        "handler.py": "import pkg.sub.mod\nfrom pkg import other, VALUE\n",
        "pkg/__init__.py": "VALUE = 1\n",
        "pkg/other.py": "from . import third\nfrom .sub import mod\n",
        "pkg/third.py": "import beside\n",
        "pkg/unused.py": "",
        "pkg/sub/__init__.py": "",
        "pkg/sub/mod.py": "from .. import other\n",
        "beside.py": "",
    }
    expected = ["beside.py", "pkg/__init__.py", "pkg/other.py", "pkg/sub/__init__.py", "pkg/sub/mod.py", "pkg/third.py"]
    entry = lay(tmp_path, files)
    assert local_names(entry) == expected
    assert loaded_by_python(entry) == {entry, *local_imports(entry)}


def test_a_star_import_takes_the_modules_that_the_package_lists(tmp_path: Path) -> None:
    files = {
        "handler.py": "from pkg import *\n",
        "pkg/__init__.py": "__all__ = ['a']\n",
        "pkg/a.py": "",
        "pkg/b.py": "",
    }
    assert local_names(lay(tmp_path, files)) == ["pkg/__init__.py", "pkg/a.py"]


def test_a_folder_without_an_init_is_a_package_too(tmp_path: Path) -> None:
    assert local_names(lay(tmp_path, {"handler.py": "import pkg.mod\n", "pkg/mod.py": ""})) == ["pkg/mod.py"]


def test_a_module_imported_by_a_literal_name_is_found(tmp_path: Path) -> None:
    text = "import importlib\nimportlib.import_module('beside')\n"
    assert local_names(lay(tmp_path, {"handler.py": text, "beside.py": ""})) == ["beside.py"]


def test_every_relative_import_is_named_with_its_line_and_its_fix(tmp_path: Path) -> None:
    entry = lay(tmp_path, {"handler.py": "from .beside import thing\nfrom . import a, b\n", "beside.py": ""})
    with pytest.raises(HandlerError) as error:
        local_imports(entry)
    assert f"{entry}:1: relative import of '.beside'" in error.value.message
    assert f"{entry}:2: relative import of '.'" in error.value.message
    assert error.value.tip == "write `from beside import thing`; write `import a, b`"


def test_a_relative_import_beyond_its_package_is_refused(tmp_path: Path) -> None:
    files = {"handler.py": "import pkg.mod\n", "pkg/__init__.py": "", "pkg/mod.py": "from .. import handler\n"}
    with pytest.raises(HandlerError, match=r"pkg/mod\.py:1: relative import"):
        local_imports(lay(tmp_path, files))


@pytest.mark.parametrize("name", ["json", "logging", "ts", "torch", "numpy"])
def test_a_local_file_named_as_a_module_of_the_worker_is_refused(tmp_path: Path, name: str) -> None:
    entry = lay(tmp_path, {"handler.py": f"\nimport {name}\n", f"{name}.py": ""})
    with pytest.raises(HandlerError, match=rf"handler\.py:2: the local module '{name}'") as error:
        local_imports(entry)
    assert error.value.tip == f"rename {tmp_path / name}.py"


def test_a_handler_named_as_a_module_of_the_standard_library_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"queue.py": ""})
    with pytest.raises(HandlerError, match="standard library"):
        local_imports(tmp_path / "queue.py")


def test_a_file_that_is_not_python_is_named_with_its_line(tmp_path: Path) -> None:
    entry = lay(tmp_path, {"handler.py": "import beside\n", "beside.py": "x = 1\ndef f(:\n"})
    with pytest.raises(HandlerError, match=r"beside\.py:2: not valid Python"):
        local_imports(entry)


def test_nothing_is_run_while_imports_are_followed(tmp_path: Path) -> None:
    text = f"import pathlib\nimport beside\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    entry = lay(tmp_path, {"handler.py": text, "beside.py": text.replace("import beside\n", "")})
    distributions([entry, *local_imports(entry)])
    assert not (tmp_path / "ran").exists()


def test_third_party_names_are_neither_local_nor_of_the_standard_library(tmp_path: Path) -> None:
    entry = lay(
        tmp_path, {"handler.py": "import os, beside, PIL.Image\nfrom torch import nn\n", "beside.py": "import yaml\n"}
    )
    assert third_party([entry, *local_imports(entry)]) == ["PIL", "torch", "yaml"]


def test_modules_are_traced_to_their_distributions(tmp_path: Path) -> None:
    text = "import torch, torchgen, yaml, grpc, skimage.data, google.protobuf.message\nfrom PIL import Image\n"
    expected = ["grpcio", "pillow", "protobuf", "pyyaml", "scikit-image", "torch"]
    assert distributions([lay(tmp_path, {"handler.py": text})]) == expected


def test_of_distributions_that_share_a_name_only_the_one_that_has_the_module_counts(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name, module in {"Shared_One": "shared/one/__init__.py", "shared-two": "shared/two.py"}.items():
        info = f"{name}-1.0.dist-info"
        lay(site, {module: "", f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"})
        lay(site, {f"{info}/RECORD": f"{module},,\n{info}/METADATA,,\n{info}/RECORD,,\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        assert Providers.installed().of("shared.one.deep") == ["Shared_One"]
        assert Providers.installed().of("shared.two") == ["shared-two"]
        assert distributions([lay(tmp_path, {"handler.py": "from shared import two\n"})]) == ["shared-two"]


def test_what_is_not_installed_is_named_with_its_line(tmp_path: Path) -> None:
    entry = lay(tmp_path, {"handler.py": "import cv2\n\nimport no_such_module.deep\n"})
    with pytest.raises(HandlerError) as error:
        distributions([entry])
    assert f"{entry}:1: the module 'cv2' is neither beside the handler nor installed" in error.value.message
    assert f"{entry}:3: the module 'no_such_module'" in error.value.message
    assert error.value.tip is not None
    assert "pip install opencv-python-headless" in error.value.tip


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    import no_such_module\nexcept ImportError:\n    no_such_module = None\n",
        "try:\n    import no_such_module\nexcept (OSError, ModuleNotFoundError):\n    import no_such_either\n",
        "from contextlib import suppress\nwith suppress(ImportError):\n    import no_such_module\n",
        "import sys\nif sys.version_info < (3, 0):\n    import no_such_module\n",
    ],
)
def test_optional_imports_may_be_missing(tmp_path: Path, text: str) -> None:
    assert distributions([lay(tmp_path, {"handler.py": text})]) == []


def test_optional_imports_count_where_they_are_installed(tmp_path: Path) -> None:
    text = "try:\n    import PIL\nexcept ImportError:\n    PIL = None\n"
    assert distributions([lay(tmp_path, {"handler.py": text})]) == ["pillow"]


def test_a_try_that_catches_something_else_makes_no_import_optional(tmp_path: Path) -> None:
    entry = lay(tmp_path, {"handler.py": "try:\n    import no_such_module\nexcept ValueError:\n    pass\n"})
    with pytest.raises(HandlerError, match="no_such_module"):
        distributions([entry])


def test_missing_modules_can_be_left_out(tmp_path: Path) -> None:
    entry = lay(tmp_path, {"handler.py": "import PIL, no_such_module\n"})
    assert distributions([entry], allow_missing=True) == ["pillow"]


def test_extra_files_from_other_folders_are_local(tmp_path: Path) -> None:
    entry = lay(tmp_path / "a", {"handler.py": "import helper_from_b\n"})
    lay(tmp_path / "b", {"helper_from_b.py": "import PIL\n"})
    assert distributions([entry, tmp_path / "b" / "helper_from_b.py"]) == ["pillow"]


def test_a_module_of_an_editable_installation_belongs_to_its_distribution(tmp_path: Path) -> None:
    entry = lay(tmp_path, {"handler.py": "import marsmith.errors\n"})
    assert distributions([entry]) == ["marsmith"]


def test_a_module_that_belongs_to_no_distribution_is_refused(tmp_path: Path) -> None:
    lay(tmp_path / "elsewhere", {"loose_module.py": ""})
    entry = lay(tmp_path, {"handler.py": "import loose_module\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "elsewhere")
        with pytest.raises(HandlerError, match="belongs to no installed distribution"):
            distributions([entry])


def test_the_shipped_image_classifier_needs_its_own_modules_and_known_distributions() -> None:
    entry = HANDLERS / "image_classifier_handler.py"
    files = local_imports(entry)
    assert {LIBRARY / "base.py", LIBRARY / "image" / "decoding.py"} <= set(files)
    assert {"pillow", "torch", "torchvision"} <= set(distributions([entry, *files]))
    assert loaded_by_python(entry) <= {entry, *files}


def test_bare_python_has_no_distributions_but_its_own(tmp_path: Path) -> None:
    """The answer is about the Python that runs marsmith, not about marsmith's own imports."""
    venv.create(tmp_path / "bare", with_pip=False)
    entry = lay(tmp_path, {"handler.py": "import PIL\n"})
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY / 'src')!r})\nfrom pathlib import Path\n"
    code += f"from marsmith.runtime.imports import distributions\nprint(distributions([Path({str(entry)!r})]))"
    done = subprocess.run([tmp_path / "bare/bin/python", "-c", code], capture_output=True, text=True)
    assert "the module 'PIL' is neither beside the handler nor installed" in done.stderr


LAZY = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from lib.base import Base
    from lib.other import Other, Another
    from far import Far
def __getattr__(name): ...
"""


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("from lib import Base", ["lib/base.py", "lib/parts.py"]),
        ("from lib import Another", ["lib/other.py"]),
        ("from lib import Far, Other", ["far.py", "lib/other.py"]),
        ("from lib import parts", ["lib/parts.py"]),
        ("import lib", ["far.py", "lib/base.py", "lib/other.py", "lib/parts.py"]),
        ("import lib.parts", ["lib/parts.py"]),
        ("from lib import nothing", []),
    ],
)
def test_what_a_package_imports_on_first_use_of_a_name_rides_along(
    tmp_path: Path, statement: str, found: list[str]
) -> None:
    files = {"lib/base.py": "import lib.parts\n", "lib/other.py": "", "lib/parts.py": "", "far.py": ""}
    entry = lay(tmp_path, {**files, "lib/__init__.py": LAZY, "handler.py": f"{statement}\n"})
    assert local_names(entry) == sorted(["lib/__init__.py", *found])
    # Without the function of PEP 562 they are for type checkers alone.
    lay(tmp_path, {"lib/__init__.py": LAZY.partition("def ")[0]})
    assert {"lib/base.py", "lib/other.py", "far.py"}.isdisjoint(local_names(entry))


def test_packages_that_import_each_other_on_first_use_end(tmp_path: Path) -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {} import X\ndef __getattr__(name): ...\n"
    files = {"a/__init__.py": lazy.format("b"), "b/__init__.py": lazy.format("a"), "handler.py": "from a import X\n"}
    assert local_names(lay(tmp_path, files)) == ["a/__init__.py", "b/__init__.py"]


def test_only_what_is_imported_of_the_package_of_our_handlers_rides_along(tmp_path: Path) -> None:
    shutil.copytree(LIBRARY, tmp_path / LIBRARY.name, ignore=shutil.ignore_patterns("__pycache__"))
    entry = lay(tmp_path, {"handler.py": "from marsmith_handler import ItemError\n"})
    assert local_names(entry) == ["marsmith_handler/__init__.py", "marsmith_handler/errors.py"]
    lay(tmp_path, {"handler.py": "from marsmith_handler import BaseHandler\n"})
    names = local_names(entry)
    engines = {path.name for path in (LIBRARY / "engines").glob("*.py")}
    assert {f"marsmith_handler/engines/{name}" for name in engines} <= set(names)
    assert not any(part in name for name in names for part in ("/image/", "/text/", "/audio/"))


FORMER = [
    ("from base_handler import BaseHandler", "from marsmith_handler import BaseHandler"),
    ("from item_errors import ItemError", "from marsmith_handler import ItemError"),
    ("from item_errors import Unusable", "from marsmith_handler.errors import UnprocessableContent"),
    ("from item_errors import TooLarge, ItemError", "from marsmith_handler.errors import ContentTooLarge, ItemError"),
    ("from model_request import Request, check_total", "from marsmith_handler.request import Request, check_total"),
    ("from image_decoding import decode_image", "from marsmith_handler.image.decoding import decode_image"),
    ("import devices", "from marsmith_handler import devices"),
    ("import engines", "from marsmith_handler import engines"),
    ("import torch_engine", "from marsmith_handler.engines import torch_engine"),
    ("from labels import read_labels", "from marsmith_handler.labels import read_labels"),
]


@pytest.mark.parametrize(("old", "new"), FORMER)
def test_an_import_by_a_flat_name_that_our_modules_had_is_refused_with_the_new_one(
    tmp_path: Path, old: str, new: str
) -> None:
    entry = lay(tmp_path, {"handler.py": f"import json\n{old}\n"})
    with pytest.raises(HandlerError, match="is part of the package marsmith_handler now") as error:
        distributions([entry, *local_imports(entry)])
    assert f"{entry}:2: the module" in error.value.message
    assert error.value.tip == f"write `{new}`"
    # A module of that name beside the handler is another one, and is taken.
    lay(tmp_path, {f"{old.split()[1]}.py": ""})
    assert local_names(entry) == [f"{old.split()[1]}.py"]
    assert distributions([entry, *local_imports(entry)]) == []


def test_every_new_import_works_and_every_module_has_one() -> None:
    for module in _FORMER_MODULES.values():
        place = LIBRARY.joinpath(*module.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
