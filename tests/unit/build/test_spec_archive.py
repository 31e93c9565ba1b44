from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from marsmith.build import build_from_spec
from marsmith.config import load_spec
from marsmith.config.lint import lint_paths
from marsmith.errors import MarsmithError
from marsmith.project import Project
from support.export_fixtures import write_tiny
from support.long_tests import long
from support.projects import REPOSITORY


def test_the_archive_holds_all_that_the_design_names(default_archive: Path) -> None:
    with zipfile.ZipFile(default_archive) as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        config = yaml.safe_load(archive.read("model-config.yaml"))
        report = json.loads(archive.read("MAR-INF/export.json"))
        environment = archive.read("MAR-INF/environment.txt").decode()
        examples = json.loads(archive.read("MAR-INF/examples/examples.json"))
    assert len(names) == len(set(names))
    assert {"MAR-INF/SHA256SUMS", "MAR-INF/sbom.cdx.json", "model.pt", "index_to_name.json"} <= set(names)
    ours = {"marsmith_handler/base.py", "marsmith_handler/image/decoding.py"}
    assert {"image_classifier_handler.py", *ours} <= set(names)
    assert manifest["model"]["modelName"] == "efficientnet_lite0"
    assert manifest["model"]["handler"] == "image_classifier_handler.py"
    serving = yaml.safe_load((REPOSITORY / "config/models/efficientnet_lite0.yaml").read_text())["serving"]
    assert {key: config[key] for key in serving} == serving
    assert config["handler"]["crop"] == [224, 224]
    assert config["handler"]["interpolation"] == "bicubic"
    assert report["weights"]["sha256"].startswith("57934424")
    assert "torch==" in environment
    assert "pillow==" in environment
    assert [next(iter(example["reply"])) for example in examples] == ["tiger cat", "espresso", "missile"]


def test_lint_finds_nothing_in_what_was_written(built_project: Project, default_archive: Path) -> None:
    assert lint_paths([default_archive], built_project.root, cores=64) == []


def test_every_member_is_stored_and_its_digest_is_right(default_archive: Path) -> None:
    with zipfile.ZipFile(default_archive) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        lines = archive.read("MAR-INF/SHA256SUMS").decode().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        others = [name for name in archive.namelist() if name != "MAR-INF/SHA256SUMS"]
        assert sums == {name: hashlib.sha256(archive.read(name)).hexdigest() for name in others}


def test_nothing_is_built_twice(built_project: Project, default_archive: Path) -> None:
    again = build_from_spec(built_project, load_spec(built_project, "efficientnet_lite0"))
    assert again.reused
    assert again.sha256 == hashlib.sha256(default_archive.read_bytes()).hexdigest()


@long("export")
def test_a_second_clone_builds_the_same_bytes(project: Project, default_archive: Path) -> None:
    other = build_from_spec(project, load_spec(project, "efficientnet_lite0"))
    assert not other.reused
    assert other.sha256 == hashlib.sha256(default_archive.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("handlers/image_classifier_handler.py", "handlers/none.py", "does not exist"),
        ("handlers/image_classifier_handler.py", "handlers", "is a folder"),
        ("handlers/image_classifier_handler.py", "../outside.py", "leads out of the project"),
        pytest.param("expect: tiger cat", "expect: espresso", "espresso", marks=long("export")),
        ("package:skimage/data/coffee.png", "none.png", "none.png"),
    ],
)
def test_a_spec_that_cannot_be_built_leaves_the_store_as_it_was(
    built_project: Project, project: Project, old: str, new: str, message: str
) -> None:
    shutil.copytree(built_project.root / ".marsmith", project.root / ".marsmith")
    (project.root.parent / "outside.py").touch()
    path = project.specs / "efficientnet_lite0.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(MarsmithError, match=message):
        build_from_spec(project, load_spec(project, "efficientnet_lite0"))
    assert not list(project.model_store.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class A: ...\nclass B: ...\n", "A.*B|two|2"),
        ("x = 1\n", "class"),
        ("def broken(:\n", "py:1: not valid Python"),
        ("import nowhere_to_be_found\ndef handle(data, context): ...\n", "nowhere_to_be_found"),
        (
            "from base_handler import BaseHandler\nclass H(BaseHandler): ...\n",
            "part of the package marsmith_handler",
        ),
    ],
)
def test_a_handler_that_no_worker_could_load_is_refused_before_anything_is_exported(
    project: Project, code: str, message: str
) -> None:
    (project.root / "handlers" / "image_classifier_handler.py").write_text(code)
    with pytest.raises(MarsmithError, match=message):
        build_from_spec(project, load_spec(project, "efficientnet_lite0"))
    assert not (project.root / ".marsmith").exists()
    assert not list(project.model_store.iterdir())


def test_a_handler_that_fails_at_load_is_refused_also_without_examples(project: Project) -> None:
    spec = write_tiny(project).specs / "tiny.yaml"
    spec.write_text(spec.read_text().partition("examples:")[0])
    handler = project.root / "handlers" / "image_classifier_handler.py"
    handler.write_text(handler.read_text() + "\nraise RuntimeError('no luck')\n")
    with pytest.raises(MarsmithError, match="no luck"):
        build_from_spec(project, load_spec(project, "tiny"))
    assert not list(project.model_store.iterdir())


def test_a_handler_that_is_a_link_out_of_the_project_is_refused(project: Project, tmp_path: Path) -> None:
    handler = project.root / "handlers" / "image_classifier_handler.py"
    handler.rename(tmp_path / "stolen.py")
    handler.symlink_to(tmp_path / "stolen.py")
    with pytest.raises(MarsmithError, match="leads out of the project"):
        build_from_spec(project, load_spec(project, "efficientnet_lite0"))
