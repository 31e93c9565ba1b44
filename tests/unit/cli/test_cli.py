from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from marsmith.cli import VERBS, main
from support.projects import REPOSITORY


def test_without_arguments_every_verb_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in VERBS)


def test_a_misspelt_verb_gets_the_nearest_one_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exprot"]) == 2
    assert "did you mean 'export'" in capsys.readouterr().err


def test_a_failure_has_exit_code_1_and_a_tip(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "m"]) == 1
    assert "TIP: change into a project" in capsys.readouterr().err


def test_an_unknown_model_has_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["archive", "resnet81"]) == 2
    assert "did you mean 'resnet18'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_without_torch(verb: str) -> None:
    probe = (
        "import sys; from marsmith.cli import main\n"
        f"try: main([{verb!r}, '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'grpc', 'numpy', 'requests'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: marsmith {verb}" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented(verb: str) -> None:
    pages = "".join(
        path.read_text() for path in [*sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "README.md"]
    )
    assert f"marsmith {verb}" in pages
