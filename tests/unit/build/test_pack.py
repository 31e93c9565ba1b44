"""``marsmith pack`` beside the real torch-model-archiver: the same flags, members and manifest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from marsmith.archive import Archive
from marsmith.cli import main
from marsmith.runtime.imports import local_imports
from support.archive_inputs import HANDLER, WEIGHTS, listing
from support.projects import REPOSITORY

ARCHIVER = Path(sys.executable).with_name("torch-model-archiver")
BASE = ("pack", "--model-name", "toy", "--version", "1.0")
CLASS_HANDLER = "class Handler:\n    def handle(self, data, context):\n        return data\n"
SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of loose files, as the working folder."""
    folder = tmp_path / "in"
    for name, content in {
        "model.pt": WEIGHTS,
        "deep/model.py": b"class Net:\n    pass\n",
        "deep/toy_handler.py": HANDLER,
        "class_handler.py": CLASS_HANDLER.encode(),
        "requirements/pip.txt": b"numpy\n",
        "model-config.yaml": b"minWorkers: 1\n",
        "index_to_name.json": b'{"0": "cat"}' * 9,
        "assets/.hidden": b"hidden file",
        "assets/vocab.txt": b"a\nb\n",
        "assets/sub/deeper/words.txt": b"words",
        "assets/__pycache__/x.pyc": b"compiled",
        "assets/.git/config": b"hidden folder",
        "assets/sub/__MACOSX/y": b"mac",
        "wild/a1.txt": b"1",
        "wild/a2.txt": b"2",
        "wild/b.bin": b"3",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "assets" / "empty").mkdir()
    monkeypatch.chdir(folder)
    return folder


def pack(*arguments: str) -> int:
    return main([*BASE, *arguments])


def content_of(path: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """Give an archive's files and its manifest, without what only one of the tools writes; read by Python alone."""
    if path.is_dir():
        files = listing(path)
    elif path.suffix == ".gz":
        with tarfile.open(path) as tar:
            files = {e.name.partition("/")[2]: tar.extractfile(e).read() for e in tar if e.isfile()}  # type: ignore[union-attr]
    else:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files.pop("MAR-INF/MANIFEST.json"))
    files.pop("MAR-INF/SHA256SUMS", None)
    for key in ("createdOn", "archiverVersion", "marsmith"):
        manifest.pop(key, None)
    return files, manifest


def stock(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run torch-model-archiver, which deletes a folder in the temporary folder, in one of its own."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    command = [str(ARCHIVER), *BASE[1:], *arguments, "--export-path", str(folder / "out")]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


ALL = ("--serialized-file", "model.pt", "--model-file", "deep/model.py", "--handler", "deep/toy_handler.py")
CASES = {
    "everything": (
        *ALL,
        "-r",
        "requirements/pip.txt",
        "-c",
        "model-config.yaml",
        "--extra-files",
        "index_to_name.json",
    ),
    "built-in handler": ("--serialized-file", "model.pt", "--handler", "image_classifier"),
    "handler without .py": ("--serialized-file", "model.pt", "--handler", "deep/toy_handler"),
    "handler with function": ("--handler", "deep/toy_handler:handle"),
    "folder": ("--handler", "class_handler.py", "--extra-files", "assets"),
    "folder with a slash": (
        "--handler",
        "class_handler.py",
        "--extra-files",
        "assets/,model-config.yaml,",
    ),
    "wildcards": ("--handler", "class_handler.py", "--extra-files", "wild/a*.txt,wild/[b].*,no*such"),
    "the same file twice": ("--handler", "class_handler.py", "--extra-files", "model.pt,class_handler.py,model.pt"),
    "python3": ("--handler", "class_handler.py", "--runtime", "python3"),
    "short flags": ("--handler", "class_handler.py", "-c", "model-config.yaml", "-f"),
    "abbreviated flags": ("--hand", "class_handler.py", "--ser", "model.pt"),
}


@pytest.mark.skipif(not ARCHIVER.exists(), reason="needs torch-model-archiver")
@pytest.mark.parametrize("archive_format", SUFFIXES)
@pytest.mark.parametrize("case", CASES)
def test_the_same_inputs_give_the_same_members_and_manifest(
    inputs: Path, tmp_path: Path, case: str, archive_format: str
) -> None:
    arguments = (*CASES[case], "--archive-format", archive_format)
    theirs = stock(tmp_path / "stock", *arguments)
    assert theirs.returncode == 0, theirs.stderr
    assert pack(*arguments, "--export-path", str(tmp_path / "ours")) == 0
    name = f"toy{SUFFIXES[archive_format]}"
    assert content_of(tmp_path / "ours" / name) == content_of(tmp_path / "stock" / "out" / name)


@pytest.mark.skipif(not ARCHIVER.exists(), reason="needs torch-model-archiver")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--handler", "missing.py"),
        ("--handler", "image_clasifier"),
        ("--handler", "class_handler.py", "--serialized-file", "missing.pt"),
        ("--handler", "class_handler.py", "--serialized-file", "assets"),
        ("--handler", "class_handler.py", "--extra-files", "missing.txt"),
        ("--handler", "class_handler.py", "--archive-format", "rar"),
        ("--handler", "class_handler.py", "--runtime", "ruby"),
        (),
    ],
)
def test_what_they_refuse_is_refused_too_and_nothing_is_left(
    inputs: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert stock(tmp_path / "stock", *arguments).returncode != 0
    ours = [*BASE, *arguments, "--export-path", str(tmp_path / "ours" / "deeper")]
    assert subprocess.run([sys.executable, "-m", "marsmith", *ours], capture_output=True, check=False).returncode in {
        1,
        2,
    }
    assert not (tmp_path / "ours").exists()


@pytest.mark.skipif(not ARCHIVER.exists(), reason="needs torch-model-archiver")
def test_lsp_handlers_are_shared_libraries_or_built_in(inputs: Path, tmp_path: Path) -> None:
    (inputs / "libtoy.so").write_bytes(b"\x7fELF")
    for handler in ("libtoy:Toy", "TorchScriptHandler"):
        arguments = ("--handler", handler, "--runtime", "LSP", "-f", "--archive-format", "zip-store")
        assert stock(tmp_path / "stock", *arguments).returncode == 0
        assert pack(*arguments, "--export-path", str(tmp_path)) == 0
        assert content_of(tmp_path / "toy.mar") == content_of(tmp_path / "stock" / "out" / "toy.mar")


def test_a_handler_file_with_a_function_is_taken_with_its_suffix_too(inputs: Path, tmp_path: Path) -> None:
    assert pack("--handler", "deep/toy_handler.py:handle", "--export-path", str(tmp_path)) == 0
    archive = Archive.open(tmp_path / "toy.mar")
    assert archive.manifest.handler == "toy_handler.py:handle"
    assert archive.read("toy_handler.py") == HANDLER


def test_two_different_files_of_one_name_are_an_error_that_names_both(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, content in (("one", "1"), ("two", "2")):
        (inputs / folder).mkdir()
        (inputs / folder / "labels.txt").write_text(content)
    extra = ("--handler", "class_handler.py", "--extra-files", "one,two", "--export-path", str(tmp_path / "out"))
    assert pack(*extra) == 1
    assert "one/labels.txt and two/labels.txt differ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert pack(*extra, "--keep-tree") == 0
    files, _ = content_of(tmp_path / "out" / "toy.mar")
    assert files["one/labels.txt"] + files["two/labels.txt"] == b"12"


@pytest.fixture
def tree(inputs: Path) -> Path:
    """Two folders with a file of one name each, and one outside of the project."""
    for name, content in {"a/x.json": "1", "b/x.json": "2", "b/sub/x.json": "3"}.items():
        (inputs / name).parent.mkdir(parents=True, exist_ok=True)
        (inputs / name).write_text(content)
    (inputs / "link").symlink_to("a")
    outside = inputs.parent / "outside"
    outside.mkdir()
    (outside / "x.json").write_text("4")
    return inputs


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ("?/x.json", {"a/x.json", "b/x.json"}),
        ("?", {"a/x.json", "b/x.json", "b/sub/x.json"}),
        ("a/x.json,b", {"a/x.json", "b/x.json", "b/sub/x.json"}),
        ("b/sub,a", {"b/sub/x.json", "a/x.json"}),
        ("./a/../b/x.json, a/", {"b/x.json", "a/x.json"}),
        ("a/x.json,./a/x.json,?/x.json", {"a/x.json", "b/x.json"}),
        ("link/x.json,a", {"link/x.json", "a/x.json"}),
        ("link,b/sub/x.json", {"link/x.json", "b/sub/x.json"}),
        ("../outside/x.json,a", {"x.json", "a/x.json"}),
        ("../outside,a", {"outside/x.json", "a/x.json"}),
        ("HERE/a/x.json,HERE/b/sub", {"a/x.json", "b/sub/x.json"}),
        ("index_to_name.json,b/*", {"index_to_name.json", "b/x.json", "b/sub/x.json"}),
    ],
)
def test_keep_tree_keeps_the_path_of_whatever_is_named(tree: Path, tmp_path: Path, extra: str, names: set[str]) -> None:
    given = extra.replace("HERE", str(tree))
    assert (
        pack("--handler", "class_handler.py", "--export-path", str(tmp_path), "--keep-tree", "--extra-files", given)
        == 0
    )
    archive = Archive.open(tmp_path / "toy.mar")
    assert {name for name in archive.members if not name.startswith("MAR-INF/")} == names | {"class_handler.py"}


def test_in_a_folder_of_a_project_what_lies_elsewhere_keeps_its_path_in_the_project(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "config" / "models").mkdir(parents=True)
    (tree / "config.properties").write_text("")
    monkeypatch.chdir(tree / "b")
    handler = ("--handler", "../class_handler.py", "--export-path", str(tmp_path), "--keep-tree")
    assert pack(*handler, "--extra-files", "../a/x.json,sub/x.json") == 0
    names = Archive.open(tmp_path / "toy.mar").members.keys()
    assert {"a/x.json", "sub/x.json"} <= names


@pytest.mark.parametrize(
    ("options", "said", "tip"),
    [
        (("--extra-files", "?/x.json"), "a/x.json and b/x.json differ, and both would become 'x.json'", True),
        (
            ("--extra-files", "../outside/x.json,../x.json", "--keep-tree"),
            "../outside/x.json and ../x.json differ, and both would become 'x.json'",
            False,
        ),
    ],
)
def test_a_collision_names_both_and_never_offers_the_flag_that_is_given(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str, tip: bool
) -> None:
    (tree.parent / "x.json").write_text("5")
    assert pack("--handler", "class_handler.py", "--export-path", str(tmp_path / "out"), *options) == 1
    error = capsys.readouterr().err
    assert said in error
    assert ("--keep-tree" in error) == tip
    assert not (tmp_path / "out").exists()


def test_a_path_with_backslashes_is_told_how_to_write_it(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack("--handler", "class_handler.py", "--extra-files", "a\\x.json", "--keep-tree") == 1
    assert "folders are separated by /: a/x.json" in capsys.readouterr().err


def test_a_file_whose_name_looks_like_a_wildcard_is_packed(inputs: Path, tmp_path: Path) -> None:
    (inputs / "labels[1].txt").write_text("cat")
    arguments = ("--handler", "class_handler.py", "--extra-files", "labels[1].txt", "--export-path", str(tmp_path))
    assert pack(*arguments) == 0
    assert Archive.open(tmp_path / "toy.mar").read("labels[1].txt") == b"cat"


def test_an_existing_archive_is_kept_without_force(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.mar").write_bytes(b"old")
    assert pack("--handler", "class_handler.py", "--export-path", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "already exists" in error
    assert "--force" in error
    assert (tmp_path / "toy.mar").read_bytes() == b"old"
    assert pack("--handler", "class_handler.py", "--export-path", str(tmp_path), "--force") == 0
    assert Archive.open(tmp_path / "toy.mar").manifest.model_name == "toy"


def test_the_path_goes_to_stdout_and_nothing_else_anywhere(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack("--handler", "class_handler.py") == 0
    printed = capsys.readouterr()
    assert printed.out == "toy.mar\n"
    assert printed.err == ""


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "toy\n"])
def test_a_name_that_torchserve_refuses_is_refused(inputs: Path, name: str) -> None:
    assert main(["pack", f"--model-name={name}", "--version", "1.0", "--handler", "class_handler.py"]) == 2
    assert not list(inputs.glob("*.mar"))


def test_an_empty_version_is_refused(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "--model-name", "toy", "--version", "", "--handler", "class_handler.py"]) == 2
    assert "the version is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class A:\n    def handle(self, d, c): ...\nclass B: ...\n", "2 classes: A, B"),
        ("if True:\n    class A: ...\nelse:\n    class B: ...\n", "2 classes: A, B"),
        ("from other import Handler\n", "no class and no function 'handle'"),
        ("class A:\n    def predict(self): ...\n", "the class A has no method 'handle'"),
        ("class A(:\n", "not valid Python"),
        ("def serve(data, context): ...\n", "no class and no function"),
    ],
)
def test_a_handler_without_one_entry_point_is_refused(
    inputs: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    (inputs / "bad.py").write_text(text)
    assert pack("--handler", "bad.py") == 1
    assert reason in capsys.readouterr().err
    assert not list(inputs.glob("*.mar"))


@pytest.mark.parametrize(
    ("text", "handler"),
    [
        ("class A:\n    def handle(self, d, c): ...\n    class Inner: ...\n", "good.py"),
        ("from ts.torch_handler.base_handler import BaseHandler\nclass A(BaseHandler): ...\n", "good.py"),
        ("class A: ...\nclass B: ...\ndef handle(d, c): ...\n", "good.py"),
        ("from other import handle\n", "good.py"),
        ("class A: ...\nclass B: ...\ndef serve(d, c): ...\n", "good.py:serve"),
        ("try:\n    import x\nexcept ImportError:\n    x = None\nhandle = lambda d, c: d\n", "good.py"),
    ],
)
def test_every_entry_point_that_torchserve_finds_is_accepted(inputs: Path, text: str, handler: str) -> None:
    (inputs / "good.py").write_text(text)
    assert pack("--handler", handler) == 0


@pytest.mark.parametrize(
    ("text", "tip"),
    [
        ("from other import Handler\n", "write a class with initialize"),
        ("x = 1\n", "or a function handle(data, context)"),
        ("def serve(data, context): ...\n", "name the existing one, bad.py:serve"),
        ("class A: ...\nclass B: ...\n", "move other classes into a file of their own"),
    ],
)
def test_the_tip_fits_what_the_file_has(inputs: Path, capsys: pytest.CaptureFixture[str], text: str, tip: str) -> None:
    (inputs / "bad.py").write_text(text)
    assert pack("--handler", "bad.py") == 1
    told = " ".join(capsys.readouterr().err.split())
    assert tip in told
    assert ("other classes" in told) == ("class A" in text)


def test_a_function_that_is_not_there_is_refused(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack("--handler", "class_handler.py:serve") == 1
    assert "it has no function 'serve'" in capsys.readouterr().err


def test_a_local_import_that_was_forgotten_is_told(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inputs / "helper.py").write_text("x = 1\n")
    (inputs / "uses.py").write_text("import helper\ndef handle(data, context): ...\n")
    assert pack("--handler", "uses.py") == 0
    assert "uses.py imports helper.py" in capsys.readouterr().err
    assert pack("--handler", "uses.py", "--extra-files", "helper.py", "--force") == 0
    assert capsys.readouterr().err == ""


def test_a_forgotten_part_of_a_package_is_told_with_the_folder_to_add(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs / "code" / "mine").mkdir(parents=True)
    (inputs / "code" / "mine" / "part.py").write_text("x = 1\n")
    (inputs / "code" / "uses.py").write_text("from mine.part import x\ndef handle(data, context): ...\n")
    assert pack("--handler", "code/uses.py") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"uses.py imports mine/part.py, which lies beside it: add {inputs / 'code'} to --extra-files" in told
    assert pack("--handler", "code/uses.py", "--extra-files", str(inputs / "code"), "--force") == 0
    assert capsys.readouterr().err == ""


def test_the_modules_that_our_handlers_share_ride_along(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = REPOSITORY / "handlers"
    assert pack("--handler", str(handlers / "tensor_handler.py")) == 0
    assert capsys.readouterr().err == ""
    names = {name for name in Archive.open(inputs / "toy.mar").members if name.endswith(".py")}
    entry = handlers / "tensor_handler.py"
    assert names == {path.relative_to(handlers).as_posix() for path in (entry, *local_imports(entry))}
    assert "marsmith_handler/base.py" in names
    # Named once more, they are the same members.
    assert pack("--handler", str(entry), "--extra-files", str(handlers), "--force") == 0


FORMER = "from base_handler import BaseHandler\n\n\nclass Mine(BaseHandler):\n    pass\n"


def test_an_import_by_a_flat_name_that_our_modules_had_is_refused_unless_the_archive_has_such_a_module(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs / "mine.py").write_text(FORMER)
    assert pack("--handler", "mine.py") == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "mine.py:1: the module 'base_handler' is not beside the handler" in told
    assert "TIP: write `from marsmith_handler import BaseHandler`" in told
    assert not (inputs / "toy.mar").exists()
    (inputs / "helper.py").write_text("def late():\n    import item_errors\n")
    (inputs / "mine.py").write_text("import helper\n\n\ndef handle(data, context): ...\n")
    assert pack("--handler", "mine.py", "--extra-files", "helper.py") == 1
    assert "helper.py:2: the module 'item_errors'" in " ".join(capsys.readouterr().err.split())
    (inputs / "old").mkdir()
    (inputs / "old" / "item_errors.py").write_text("")
    assert pack("--handler", "mine.py", "--extra-files", "helper.py,old/item_errors.py") == 0


def test_a_link_that_leads_out_of_the_project_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text("secret")
    (inputs / "assets" / "out").symlink_to(tmp_path / "secret")
    (inputs / "assets" / "in").symlink_to("vocab.txt")
    arguments = ("--handler", "class_handler.py", "--extra-files", "assets", "--force")
    assert pack(*arguments) == 0
    assert "assets/out is a link" in capsys.readouterr().err
    assert Archive.open(inputs / "toy.mar").read("in") == b"a\nb\n"
    (inputs / "config" / "models").mkdir(parents=True)
    assert pack(*arguments) == 1
    assert "assets/out is a link out of the project" in capsys.readouterr().err


def test_links_that_lead_round_in_a_circle_are_refused(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inputs / "assets" / "sub" / "up").symlink_to("..")
    assert pack("--handler", "class_handler.py", "--extra-files", "assets") == 1
    assert "is a link back up" in capsys.readouterr().err


def test_an_extra_file_cannot_replace_the_manifest(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inputs / "old" / "MAR-INF").mkdir(parents=True)
    (inputs / "old" / "MAR-INF" / "MANIFEST.json").write_text("{}")
    assert pack("--handler", "class_handler.py", "--extra-files", "old") == 1
    assert "written by marsmith itself" in capsys.readouterr().err


def test_an_export_path_that_is_a_file_is_refused(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack("--handler", "class_handler.py", "--export-path", "model.pt") == 1
    assert "--export-path model.pt" in capsys.readouterr().err


@pytest.mark.skipif(not ARCHIVER.exists(), reason="needs torch-model-archiver")
def test_every_flag_of_theirs_is_one_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = subprocess.run([str(ARCHIVER), "--help"], capture_output=True, text=True, check=True).stdout
    with pytest.raises(SystemExit):
        main(["pack", "--help"])
    flags = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
    assert set(flags.findall(theirs)) <= set(flags.findall(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "from collections import namedtuple\nP = namedtuple('P', 'x')\nclass A:\n    def handle(self, d, c): ...\n",
            "2",
        ),
        ("class A:\n    def handle(self, d, c): ...\nB = A\n", "2 classes: A, B"),
        ("from abc import ABC\nclass A(ABC): ...\n", "the class A has no method 'handle'"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x')\n", "the class P has no method 'handle'"),
    ],
)
def test_pack_counts_the_classes_that_check_counts(
    inputs: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    (inputs / "bad.py").write_text(text)
    assert pack("--handler", "bad.py") == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["from other import *\n", "handle, other = made()\n", "handle: object = made()\n"])
def test_a_name_that_only_the_import_shows_is_trusted(inputs: Path, text: str) -> None:
    (inputs / "good.py").write_text(text)
    assert pack("--handler", "good.py") == 0
