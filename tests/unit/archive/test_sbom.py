from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.archive.environment import Environment
from marsmith.archive.sbom import Library, installed_library, render_bom, render_sbom

FILES = {"model.pt": "a" * 64, "handler.py": "0" * 64, "MAR-INF/export.json": "f" * 64}


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def installed(*names: str) -> Environment:
    from importlib.metadata import version

    return Environment("3.11.7", {name: version(name) for name in names})


@cache
def strict_validator() -> Any:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def assert_valid(text: str) -> None:
    """CycloneDX's own library, in its strict mode, finds nothing to object to, and reads it."""
    from cyclonedx.model.bom import Bom

    error = strict_validator().validate_str(text)
    assert error is None, error
    reader: Any = Bom
    assert reader.from_json(json.loads(text)).validate()


def test_the_document_is_valid_cyclonedx() -> None:
    names = ("torch", "torchvision", "numpy", "pillow", "pyyaml", "scikit-image", "captum", "protobuf")
    assert_valid(render_sbom("efficientnet_lite0", "1.0", installed(*names), FILES))


def test_a_validator_would_notice() -> None:
    text = render_sbom("m", "1.0", installed("torch"), FILES).replace('"library"', '"bibliotheca"')
    with pytest.raises(AssertionError, match="bibliotheca"):
        assert_valid(text)


def test_every_installed_distribution_gives_a_valid_document() -> None:
    from importlib.metadata import distributions

    found = {d.metadata["Name"]: installed_library(d.metadata["Name"], d.version) for d in distributions()}
    assert len(found) > 20
    assert_valid(render_bom(("m", "1"), "3.11.7", found.values(), FILES))


words = st.text(min_size=1, max_size=12)
names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+){0,3}", fullmatch=True)
versions = st.dictionaries(names, words, max_size=4)
digests = st.dictionaries(words, words.map(sha256_of), max_size=4)


@given(words, words, versions, digests)
@settings(max_examples=25, deadline=None)
def test_any_name_gives_a_valid_document(
    name: str, version: str, libraries: dict[str, str], files: dict[str, str]
) -> None:
    found = [Library(*item, licenses=("x",)) for item in libraries.items()]
    assert_valid(render_bom((name, version), "3.11.7", found, files))


def test_the_document_names_the_model_its_files_and_its_distributions() -> None:
    environment = Environment("3.11.7", {"torch": "2.8.0+cpu", "pillow": "11.0"})
    document = json.loads(render_sbom("m", "1.0", environment, FILES))
    model = document["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "m", "1.0")
    files = {c["name"]: c["hashes"][0]["content"] for c in document["components"] if c["type"] == "file"}
    assert files == FILES
    purls = [c["purl"] for c in document["components"] if c["type"] == "library"]
    assert purls == ["pkg:pypi/pillow@11.0", "pkg:pypi/torch@2.8.0%2Bcpu"]
    needed = document["dependencies"][0]["dependsOn"]
    assert needed == ["pkg:generic/python@3.11.7", *purls]


def test_licences_come_from_the_metadata() -> None:
    document = json.loads(render_sbom("m", "1.0", installed("hatchling", "pyyaml"), {}))
    licenses = {c["name"]: c.get("licenses") for c in document["components"]}
    assert licenses["hatchling"] == [{"expression": "MIT"}]
    assert licenses["pyyaml"] == [{"license": {"name": "MIT"}}]


def test_the_licence_of_another_version_is_not_claimed() -> None:
    assert installed_library("pillow", "0.0.1") == Library("pillow", "0.0.1")
    assert installed_library("no-such-dist", "1.0") == Library("no-such-dist", "1.0")


def test_equal_content_gives_equal_bytes_in_any_process_and_order() -> None:
    code = """if True:
        from marsmith.archive.environment import Environment
        from marsmith.archive.sbom import render_sbom
        names, files = {"torch": "2.15.0", "pillow": "13.0.0"}, {"b": "0" * 64, "a": "1" * 64}
        turn = dict if FORWARD else (lambda d: dict(reversed(d.items())))
        print(render_sbom("m", "1.0", Environment("3.11.7", turn(names)), turn(files)), end="")
    """
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code.replace("FORWARD", forward)],
            env={"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": locale},
            capture_output=True,
            check=True,
        ).stdout
        for seed, zone, locale, forward in [("1", "UTC", "C", "True"), ("2", "Asia/Tokyo", "C.UTF-8", "False")]
    ]
    assert outputs[0] == outputs[1]
    assert b"timestamp" not in outputs[0]


def test_the_serial_number_follows_the_content() -> None:
    def serial(version: str, files: dict[str, str]) -> str:
        return str(json.loads(render_sbom("m", version, installed("pillow"), files))["serialNumber"])

    assert serial("1.0", FILES) == serial("1.0", dict(FILES))
    assert len({serial("1.0", FILES), serial("1.1", FILES), serial("1.0", {})}) == 3
