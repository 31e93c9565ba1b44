"""`marsmith new`: what it writes, from this repository's own files, and what it refuses."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marsmith import __version__
from marsmith.cli import main
from marsmith.config import lint_project, load_spec
from marsmith.project import Project
from marsmith.scaffold import project as writing
from marsmith.scaffold.sources import SCHEMES, ModelSource, model_name
from support.projects import REPOSITORY

MODEL = "efficientnet_lite0"


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def test_the_default_project_is_this_repository_s_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "cats"
    assert main(["new", str(root)]) == 0
    assert "make test && make serve" in capsys.readouterr().err
    renamed = {"Makefile", "requirements.txt", "local.mk", "tests/test_model.py"}
    for path in (each for each in root.rglob("*") if each.is_file()):
        place = path.relative_to(root)
        if place.as_posix() not in renamed:
            assert path.read_bytes() == (REPOSITORY / place).read_bytes(), place
    assert renamed < files(root)
    handlers = {path.name for path in (REPOSITORY / "handlers").iterdir() if path.name != "__pycache__"}
    assert {path.name for path in (root / "handlers").iterdir()} == handlers
    assert [path.name for path in (root / "config" / "models").iterdir() if path.suffix == ".yaml"] == [f"{MODEL}.yaml"]


def test_the_default_project_has_no_traps_and_a_lock_that_fits(tmp_path: Path) -> None:
    assert main(["new", str(tmp_path)]) == 0
    project = Project(tmp_path)
    assert load_spec(project, MODEL).name == MODEL
    assert [item for item in lint_project(project) if item.finding.severity == "error"] == []
    assert (tmp_path / "config" / "models" / f"{MODEL}.lock").is_file()
    assert f"marsmith[all]=={__version__}" in (tmp_path / "requirements.txt").read_text()


def test_git_keeps_what_a_project_is_made_of_and_nothing_of_this_machine(tmp_path: Path) -> None:
    assert main(["new", str(tmp_path)]) == 0
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert {f"config/models/{MODEL}.lock", "model_store/README.md", "tests/test_model.py", "Makefile"} < set(listed)
    assert "local.mk" not in listed


def test_make_uses_the_python_that_made_the_project(tmp_path: Path) -> None:
    assert main(["new", str(tmp_path)]) == 0
    shown = subprocess.run(["make", "-n", "status"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert f'"{sys.executable}" -m marsmith status' in shown
    assert ".venv/.installed" not in shown
    # As in a clone on another machine.
    (tmp_path / "local.mk").unlink()
    shown = subprocess.run(["make", "-n", "status"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "pip install --requirement requirements.txt" in shown
    assert '".venv/bin/python" -m marsmith status' in shown


def test_make_says_that_its_python_is_gone(tmp_path: Path) -> None:
    assert main(["new", str(tmp_path)]) == 0
    (tmp_path / "local.mk").write_text("PYTHON := /gone/bin/python\n")
    done = subprocess.run(["make", "status"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "/gone/bin/python is gone: remove local.mk" in done.stderr


def _file(root: Path) -> Path:
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    return root


def _hidden(root: Path) -> Path:
    root.mkdir()
    (root / ".env").write_text("mine")
    return root


def _folder(root: Path) -> Path:
    (root / "handlers").mkdir(parents=True)
    return root


def _is_a_file(root: Path) -> Path:
    root.write_text("mine")
    return root


def _below_a_file(root: Path) -> Path:
    root.write_text("mine")
    return root / "cats"


def _dangling(root: Path) -> Path:
    root.symlink_to(root.with_name("nowhere"))
    return root


@pytest.mark.parametrize("make", [_file, _hidden, _folder, _is_a_file, _below_a_file, _dangling])
def test_only_an_empty_folder_is_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path / "there")
    before = files(tmp_path)
    assert main(["new", str(folder)]) == 2
    errors = capsys.readouterr().err
    assert "is not empty: it has" in errors or "is not a folder" in errors
    assert "TIP: name a folder that is empty" in errors
    assert files(tmp_path) == before


def test_the_folder_that_one_is_in_is_filled_and_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    assert main(["new"]) == 0
    assert tmp_path.stat().st_ino == before
    assert Path("config/models").is_dir()
    assert not list(tmp_path.glob(".marsmith-new-*"))


@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_takes_no_more_leaves_nothing_half_written(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "a" / "cats"
    if there:
        root.mkdir(parents=True)
    before = files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "marsmith", "new", root],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        # The largest file of a project has more.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000)),
    )
    assert done.returncode == 1, done.stderr
    assert "marsmith: error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == before


def test_what_somebody_puts_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    staged, folder = tmp_path / "staged", tmp_path / "folder"
    for place in ("config/metrics.yaml", "handlers/a.py", "Makefile", "requirements.txt"):
        (staged / place).parent.mkdir(parents=True, exist_ok=True)
        (staged / place).write_text("new")
    folder.mkdir()
    (folder / "requirements.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        writing._move(staged, folder)
    assert files(folder) == {"requirements.txt"}
    assert (folder / "requirements.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("torchvison:resnet50", "did you mean 'torchvision'"),
        ("torchvision:", "'torchvision:' names no model"),
        ("resnet50", "is not a source of a model"),
        ("", "is not a source of a model"),
        ("torchscript:gone.pt", "gone.pt does not exist"),
        ("checkpoint:gone.pth", "gone.pth does not exist"),
        ("checkpoint:.", ". is a folder"),
        ("onnx:gone.onnx", "gone.onnx does not exist"),
        ("huggingface:google/vit-base-patch16-224", "google/vit-base-patch16-224 does not exist"),
    ],
)
def test_a_source_that_names_nothing_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "cats", "--from", source]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert "TIP: " in errors
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("resnet50", "resnet50"),
        ("mobilenetv3_small_050.lamb_in1k", "mobilenetv3_small_050.lamb_in1k"),
        ("my cats (3)", "my_cats__3"),
        ("../x", "x"),
        ("a..b", "a.b"),
        ("ünder", "nder"),
        ("äöü", "model"),
        ("tokens", "model_tokens"),
    ],
)
def test_a_file_s_name_becomes_a_name_that_torchserve_takes(text: str, name: str) -> None:
    assert model_name(text) == name


def test_a_source_is_shown_as_it_was_named() -> None:
    assert str(ModelSource.parse("onnx:a:b.onnx")) == "onnx:a:b.onnx"


def test_every_kind_of_source_that_is_named_can_be_taken() -> None:
    assert set(writing._MODELS) == set(SCHEMES)


def test_without_a_source_torch_is_not_imported(tmp_path: Path) -> None:
    probe = "import sys; from marsmith.cli import main; main(['new', sys.argv[1]]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe, tmp_path], check=True, capture_output=True)
