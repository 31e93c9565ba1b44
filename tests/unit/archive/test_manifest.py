"""``MAR-INF/MANIFEST.json``: what is read, kept, printed and refused."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.archive.manifest import Manifest, parse_manifest, render_manifest
from marsmith.errors import FormatError

STOCK = """{
  "createdOn": "21/11/2026 06:29:00",
  "runtime": "python",
  "model": {
    "modelName": "resnet18",
    "serializedFile": "model.pt",
    "handler": "image_classifier",
    "modelVersion": "1.0",
    "configFile": "model-config.yaml"
  },
  "archiverVersion": "0.12.0"
}"""

TEXT = st.text(min_size=1, max_size=20)
MAYBE = st.none() | TEXT
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
# Keys that stand for themselves, so that they cannot be mistaken for one of TorchServe's.
EXTRA = st.dictionaries(TEXT.map(lambda key: f"x-{key}"), JSON, max_size=3)
MANIFESTS = st.builds(
    Manifest,
    model_name=TEXT,
    model_version=TEXT,
    handler=TEXT,
    serialized_file=MAYBE,
    model_file=MAYBE,
    requirements_file=MAYBE,
    config_file=MAYBE,
    extensions=st.none() | EXTRA,
    runtime=st.sampled_from(["python", "python3", "LSP"]),
    archiver_version=MAYBE,
    created_on=MAYBE,
    marsmith=st.none() | EXTRA,
    extra=EXTRA,
    model_extra=EXTRA,
)


def test_a_stock_manifest_is_read_and_printed_as_it_was() -> None:
    manifest = parse_manifest(STOCK)
    assert manifest.model_name == "resnet18"
    assert manifest.serialized_file == "model.pt"
    assert manifest.config_file == "model-config.yaml"
    assert manifest.marsmith is None
    assert manifest.format_version is None
    assert render_manifest(manifest) == STOCK + "\n"


@settings(max_examples=60, deadline=None)
@given(MANIFESTS)
def test_every_manifest_survives_printing_and_parsing(manifest: Manifest) -> None:
    assert parse_manifest(render_manifest(manifest)) == manifest


def test_unknown_fields_are_kept() -> None:
    data = json.loads(STOCK)
    data["description"] = {"by": "us"}
    data["model"]["envelope"] = "json"
    data["marsmith"] = {"formatVersion": 1}
    manifest = parse_manifest(json.dumps(data))
    assert manifest.extra == {"description": {"by": "us"}}
    assert manifest.model_extra == {"envelope": "json"}
    assert manifest.format_version == 1
    assert json.loads(render_manifest(manifest)) == data


@pytest.mark.parametrize(
    ("field", "value"),
    [*itertools.product(("modelName", "handler"), (None, "", [])), ("modelVersion", "")],
)
def test_a_field_that_torchserve_needs_must_be_there(field: str, value: object) -> None:
    data = json.loads(STOCK)
    data["model"][field] = value
    with pytest.raises(FormatError, match=rf"model\.{field}"):
        parse_manifest(json.dumps(data))


@pytest.mark.parametrize(
    ("written", "version"),
    [("1.0", "1.0"), ("1.10", "1.10"), ("2", "2"), ("1e3", "1e3"), ("-0", "-0"), ("true", "true"), ("null", "1.0")],
)
def test_a_version_that_is_not_a_text_is_read_as_torchserve_reads_it(written: str, version: str) -> None:
    text = json.dumps(json.loads(STOCK) | {"model": {**json.loads(STOCK)["model"], "modelVersion": "HERE"}})
    manifest = parse_manifest(text.replace('"HERE"', written))
    assert manifest.model_version == version
    assert len(manifest.noncanonical) == 1
    assert "modelVersion" in manifest.noncanonical[0]
    clean = parse_manifest(render_manifest(manifest))
    assert clean == manifest
    assert clean.noncanonical == ()


def test_what_torchserve_fills_in_is_filled_in_and_a_runtime_that_is_null_is_none() -> None:
    manifest = parse_manifest('{"model": {"modelName": "a", "handler": "h.py"}, "createdOn": null, "extra": 1.50}')
    assert (manifest.runtime, manifest.model_version, manifest.created_on) == ("python", "1.0", None)
    assert len(manifest.noncanonical) == 2
    with pytest.raises(FormatError, match="'runtime' is missing"):
        parse_manifest('{"model": {"modelName": "a", "handler": "h.py"}, "runtime": null}')


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(FormatError) as raised:
        parse_manifest('{"model": {"modelName": 1, "configFile": []}}', "a.mar/MANIFEST.json")
    assert len(raised.value.problems) == 2
    assert "a.mar/MANIFEST.json" in raised.value.message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("[]", "expected an object"),
        ("{}", "'model' is missing"),
        ('{"model": [], "runtime": "python"}', "'model' is missing or not an object"),
        (STOCK.replace('"createdOn"', '"runtime"'), "'runtime' stands twice"),
        (STOCK.replace('"python"', '"ruby"'), "'ruby' is not one of"),
        ('{"model": NaN}', "NaN is not JSON"),
        ('{"model": 1e999}', "too large"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_text_that_is_no_manifest_is_refused(text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_manifest(text)
