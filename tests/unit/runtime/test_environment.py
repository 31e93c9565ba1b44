from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.archive.environment import (
    Environment,
    VersionDifference,
    compare,
    normalise,
    parse_environment,
    render_environment,
)
from marsmith.errors import FormatError, HandlerError
from marsmith.runtime import environment

names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+){0,3}", fullmatch=True).filter(lambda name: name != "python")
versions = st.from_regex(
    r"[0-9]{1,4}(\.[0-9]{1,3}){0,3}((a|b|rc|\.post|\.dev)[0-9])?(\+[a-z0-9]{1,5})?", fullmatch=True
)
environments = st.builds(Environment, versions, st.dictionaries(names, versions, max_size=8))


@given(environments)
@settings(max_examples=60)
def test_what_is_printed_is_parsed_as_it_was(recorded: Environment) -> None:
    assert parse_environment(render_environment(recorded)) == recorded


@given(environments)
@settings(max_examples=30)
def test_the_order_of_the_distributions_changes_no_byte(recorded: Environment) -> None:
    turned = Environment(recorded.python, dict(reversed(list(recorded.distributions.items()))))
    assert render_environment(turned) == render_environment(recorded)


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_any_text_is_parsed_or_refused_with_our_error(text: str) -> None:
    try:
        parsed = parse_environment(text)
    except FormatError:
        return
    assert parse_environment(render_environment(parsed)) == parsed


def test_python_comes_first_and_names_are_normalised_and_sorted() -> None:
    text = render_environment(Environment("3.11.7", {"torch": "2.15.0+cpu", "Ruamel.YAML_x": "1", "PyYAML": "6.0.3"}))
    comment, *lines = text.splitlines()
    assert comment.startswith("# ")
    assert lines == ["python==3.11.7", "pyyaml==6.0.3", "ruamel-yaml-x==1", "torch==2.15.0+cpu"]


def test_every_line_that_is_wrong_is_named() -> None:
    with pytest.raises(FormatError) as error:
        parse_environment("python==3.11\ntorch>=2\nPyYAML==6\npyyaml==6\n", "environment.txt")
    assert error.value.problems == ("line 2: not `name==version`: 'torch>=2'", "line 4: pyyaml stands twice")


def test_a_record_without_python_is_refused() -> None:
    with pytest.raises(FormatError, match="python"):
        parse_environment("torch==2.15.0\n")


@pytest.mark.parametrize("bad", [{"a b": "1"}, {"a": "1 2"}, {"a": ""}, {"a": "1\nb==2"}, {"A_b": "1", "a-b": "2"}])
def test_what_no_line_can_hold_is_not_printed(bad: dict[str, str]) -> None:
    with pytest.raises(FormatError):
        render_environment(Environment("3.11.7", bad))


def test_a_record_has_the_versions_that_are_installed(tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text("import yaml\nfrom PIL import Image\n")
    recorded = environment.record([handler])
    assert recorded.python == platform.python_version()
    assert recorded.distributions == {
        "pillow": version("pillow"),
        "pyyaml": version("pyyaml"),
        "torch": version("torch"),
    }


def test_the_record_is_what_pip_calls_a_requirements_file(tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text("import yaml\n")
    text = render_environment(environment.record([handler]))
    requirements = [line for line in text.splitlines() if not line.startswith(("#", "python=="))]
    from packaging.requirements import Requirement

    assert all(Requirement(line).specifier.contains(version(Requirement(line).name)) for line in requirements)


def test_a_distribution_that_is_not_installed_cannot_be_recorded(tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text("")
    with pytest.raises(HandlerError, match="no-such-dist") as error:
        environment.record([handler], always=("torch", "No_such.dist"))
    assert error.value.tip == "pip install no-such-dist"
    assert environment.record([handler], always=("no-such-dist",), allow_missing=True).distributions == {}


def test_an_environment_is_equal_to_itself(tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text("import PIL\n")
    assert compare(environment.record([handler])) == []


def test_every_difference_is_named_python_first() -> None:
    recorded = Environment("2.7.18", {"torch": "0.1", "no-such-dist": "1.0", "pyyaml": version("pyyaml")})
    assert compare(recorded) == [
        VersionDifference("python", "2.7.18", platform.python_version()),
        VersionDifference("no-such-dist", "1.0", None),
        VersionDifference("torch", "0.1", version("torch")),
    ]


def test_a_difference_reads_as_a_sentence() -> None:
    differences = compare(Environment("3.11.7", {"torch": "2.0"}), installed={"python": "3.12.1"}.get)
    assert [str(difference) for difference in differences] == [
        "python is 3.12.1, recorded with 3.11.7",
        "torch is not installed, recorded with 2.0",
    ]


def test_recording_imports_nothing_that_it_records(tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text("import torch, PIL\n")
    code = "import sys; from pathlib import Path; from marsmith.runtime import environment\n"
    code += "print(environment.record([Path(sys.argv[1])])); assert not {'torch', 'PIL'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, handler], check=True)


def test_names_are_normalised_as_packaging_does_it() -> None:
    from packaging.utils import canonicalize_name

    for name in ["PyYAML", "ruamel.yaml", "a__b--c..d", "Scikit_Image"]:
        assert normalise(name) == canonicalize_name(name)
