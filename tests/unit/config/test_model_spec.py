from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsmith.config.model_spec import ModelSpec, load_spec, model_spec_schema, parse_model_spec
from marsmith.errors import SpecError, UsageError
from marsmith.project import Project
from support.projects import REPOSITORY

GOOD = """\
name: m
version: "1.0"
export:
  recipe: export/m.py
handler:
  entry_point: handlers/m_handler.py
serving:
  batchSize: 4
"""


@pytest.mark.parametrize("path", sorted((REPOSITORY / "config" / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_spec_is_valid_and_its_files_exist(path: Path) -> None:
    spec = parse_model_spec(path.read_text(), path.name)
    assert (REPOSITORY / spec.export.recipe).is_file()
    assert (REPOSITORY / spec.handler.entry_point).is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batchSize: 4", "batchsize: 4", r"line 8: unknown key 'serving.batchsize'; did you mean 'batchSize'\?"),
        ("recipe:", "recipee:", r"line 4: unknown key 'export.recipee'; did you mean 'recipe'\?"),
        ("recipe:", "recipee:", r"missing key 'export.recipe'"),
        ("name: m", "name: m/n", r"line 1: name: 'm/n' is not a model name"),
        ('"1.0"', "1.0", r"line 2: version: input should be a valid string, not 1.0"),
        ("batchSize: 4", "batchSize: 0", r"line 8: serving.batchSize: .*greater than or equal to 1"),
        ("batchSize: 4", "minWorkers: 3\n  maxWorkers: 2", r"maxWorkers 2 is below minWorkers 3"),
        ("batchSize: 4", "batchSize: 4\n  batchSize: 5", r"line 9: not valid YAML: .*duplicate key"),
        ("name: m", "name: [", "not valid YAML"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_line_and_the_fix(old: str, new: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_model_spec(GOOD.replace(old, new), "m.yaml")


def test_all_problems_come_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_model_spec(GOOD.replace("name: m", "nmae: m").replace("batchSize", "batchsize"), "m.yaml")
    assert len(caught.value.problems) == 3


def test_text_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(SpecError, match="expected a mapping"):
        parse_model_spec("- 1\n", "m.yaml")


def test_a_spec_that_names_another_model_than_its_file_is_refused(tmp_path: Path) -> None:
    specs = tmp_path / "config" / "models"
    specs.mkdir(parents=True)
    (specs / "other.yaml").write_text(GOOD)
    with pytest.raises(SpecError, match="name is 'm'"):
        load_spec(Project(tmp_path), "other")
    with pytest.raises(UsageError, match="no model"):
        load_spec(Project(tmp_path), "none")


def test_the_schema_for_editors_is_the_committed_one() -> None:
    assert (REPOSITORY / "config" / "model-spec.schema.json").read_text() == model_spec_schema()
    assert set(json.loads(model_spec_schema())["properties"]) == set(ModelSpec.model_fields)
