"""The wheel carries what a new project is made from, and makes the same project as this checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsmith import __version__
from marsmith.cli import main
from support.wheels import installed_wheel, run


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed_wheel(tmp_path_factory.mktemp("wheel"))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_wheel_makes_the_project_that_the_checkout_makes(python: Path, tmp_path: Path) -> None:
    run(str(python), "-m", "marsmith", "new", str(tmp_path / "from the wheel"))
    assert main(["new", str(tmp_path / "from the checkout")]) == 0
    mine, theirs = contents(tmp_path / "from the wheel"), contents(tmp_path / "from the checkout")
    assert f"PYTHON := {python}\n" in mine.pop("local.mk").decode()
    del theirs["local.mk"]
    assert mine == theirs


def test_an_installed_wheel_stands_for_its_code_by_its_version(python: Path) -> None:
    probe = "from marsmith.export.stamp import code_digest; import marsmith; print(code_digest(), marsmith.__file__)"
    digest, place = run(str(python), "-c", probe).stdout.split(maxsplit=1)
    assert digest == __version__
    assert Path(place.strip()).is_relative_to(python.parents[1])


def test_the_wheel_carries_its_licence(python: Path) -> None:
    probe = "from importlib.metadata import distribution; print(distribution('marsmith').read_text('licenses/LICENSE'))"
    assert "Apache License" in run(str(python), "-c", probe).stdout


def test_the_wheel_carries_the_lua_of_the_front(python: Path) -> None:
    probe = "from marsmith.server.front import scripts; print(scripts.names_version('2.0', shielded=True))"
    assert "function envoy_on_response" in run(str(python), "-c", probe).stdout


def test_a_wheel_that_has_lost_its_template_says_so(python: Path, tmp_path: Path) -> None:
    (template,) = python.parents[1].glob("lib/python*/site-packages/marsmith/template")
    hidden = template.rename(template.with_name("elsewhere"))
    try:
        probe = f"from marsmith.cli import main; raise SystemExit(main(['new', {str(tmp_path / 'cats')!r}]) != 1)"
        done = run(str(python), "-c", probe)
    finally:
        hidden.rename(template)
    assert "has no files to make a project from" in done.stderr
    assert not (tmp_path / "cats").exists()
