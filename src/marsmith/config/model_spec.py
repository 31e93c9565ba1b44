"""The model spec, ``config/models/<name>.yaml``: one file that says what a version is and how it is made and run.

Reading a model's spec from a project's disk.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from marsmith import strict_yaml
from marsmith.config.export_spec import ExportSpec as ExportSpec
from marsmith.config.export_spec import Gate as Gate
from marsmith.config.model_config import ModelConfig
from marsmith.errors import SpecError, UsageError
from marsmith.names import check_model_name, check_model_version
from marsmith.project import Project
from marsmith.strict_yaml import Strict


def _as_value_error(check: Any) -> Any:
    def checked(value: str) -> str:
        try:
            return str(check(value))
        except UsageError as error:
            raise ValueError(error.message) from None

    return checked


ModelName = Annotated[str, AfterValidator(_as_value_error(check_model_name))]
ModelVersion = Annotated[str, AfterValidator(_as_value_error(check_model_version))]


class HandlerSpec(Strict):
    """The code that turns requests into replies.

    Attributes:
        entry_point: path of the handler, from the project's root; its local imports are followed.
        extra_files: further files for the archive, from the project's root.
        environment: what a worker does when its packages differ from those that the archive records.
        settings: the block that the handler reads from model-config.yaml; over what the recipe says.
    """

    entry_point: str
    extra_files: list[str] = Field(default_factory=list)
    environment: Literal["strict", "warn", "off"] = "warn"
    settings: dict[str, Any] = Field(default_factory=dict)


class Example(Strict):
    """A request whose reply is validated when the archive is built and proved again wherever it is loaded.

    Attributes:
        input: a path from the project's root, or ``package:NAME/PATH`` for a file that an installed package carries.
        expect: label that must stand on top of the reply; None accepts any.
        tolerance: largest difference of any number in the reply, later; by default what the precision allows.
    """

    input: str
    expect: str | None = None
    tolerance: float | None = Field(default=None, gt=0)


class ServiceLevel(Strict):
    """What the version is meant to hold."""

    p99_ms: float = Field(gt=0)
    requests_per_second: float = Field(gt=0)


class ModelSpec(Strict):
    """What one version is: its name, its export, its handler, its examples and how TorchServe runs it."""

    name: ModelName
    version: ModelVersion
    description: str = ""
    export: ExportSpec
    handler: HandlerSpec
    examples: list[Example] = Field(default_factory=list)
    serving: ModelConfig = ModelConfig()
    service_level: ServiceLevel | None = None


def parse_model_spec(text: str, source: str) -> ModelSpec:
    """Parse and validate a model spec.

    Raises:
        SpecError: with every problem found; an unknown key with the nearest known one.
    """
    return strict_yaml.parse(ModelSpec, text, source, SpecError)


def model_spec_schema() -> str:
    """Return the JSON Schema of model specs, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ModelSpec.model_json_schema(by_alias=True)}
    return json.dumps(schema, indent=2) + "\n"


def load_spec(project: Project, model: str) -> ModelSpec:
    """Read and validate ``config/models/<model>.yaml``.

    Raises:
        UsageError: there is no such spec.
        SpecError: it does not follow the format, or names another model than its file does.
    """
    path = project.spec(model)
    source = str(path.relative_to(project.root))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(source, [f"not UTF-8: {error}"]) from None
    spec = parse_model_spec(text, source)
    if spec.name != model:
        raise SpecError(source, [f"name is {spec.name!r}, but the file is called {path.name}"], tip="make them equal")
    return spec
