"""The model spec, ``config/models/<name>.yaml``: one file that defines a version, how it is built and how it runs."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from marsmith import strict_yaml
from marsmith.config.export_spec import ExportSpec as ExportSpec
from marsmith.config.export_spec import Gate as Gate
from marsmith.config.model_config import ModelConfig
from marsmith.config.rollout_spec import RolloutSpec
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
        entry_point: path of the handler, relative to the project's root; its local imports are included.
        extra_files: further files for the archive, relative to the project's root.
        environment: behaviour of a worker if its packages differ from those recorded in the archive.
        settings: block for the handler in model-config.yaml; it overrides that of the recipe.
    """

    entry_point: str
    extra_files: list[str] = Field(default_factory=list)
    environment: Literal["strict", "warn", "off"] = "warn"
    settings: dict[str, Any] = Field(default_factory=dict)


class Example(Strict):
    """A request whose reply is validated at build time and checked again whenever the archive is loaded.

    Attributes:
        input: path relative to the project's root, or ``package:NAME/PATH`` for a file of an installed package.
        expect: expected top label of the reply; None for any.
        tolerance: maximum difference of any number in later replies; by default what the precision allows.
    """

    input: str
    expect: str | None = None
    tolerance: float | None = Field(default=None, gt=0)


class ServiceLevel(Strict):
    """Target service level of the version.

    Attributes:
        p99_ms: time within which 99% of the replies come, in milliseconds.
        requests_per_second: load at which that holds.
        availability: part of the requests that do not fail because of the server (status 500 and above).
    """

    p99_ms: float = Field(gt=0)
    requests_per_second: float = Field(gt=0)
    # Below 0.95, alerts by burn rate would miss outages: 14.4 times the error budget would be almost all requests.
    availability: float = Field(default=0.999, ge=0.95, lt=1)


class ModelSpec(Strict):
    """One version: its name, export, handler, examples, validation data, and TorchServe's settings.

    ``reference`` names validation data, whose statistics a build puts into the archive: files and folders relative to
    the project's root, and ``package:NAME/PATH``.
    """

    name: ModelName
    version: ModelVersion
    description: str = ""
    export: ExportSpec
    handler: HandlerSpec
    examples: list[Example] = Field(default_factory=list)
    reference: list[str] = Field(default_factory=list)
    serving: ModelConfig = ModelConfig()
    service_level: ServiceLevel | None = None
    rollout: RolloutSpec = RolloutSpec()


def parse_model_spec(text: str, source: str) -> ModelSpec:
    """Parse and validate a model spec.

    Raises:
        SpecError: there are problems; the message lists all of them, with the nearest known key for an unknown one.
    """
    return strict_yaml.parse(ModelSpec, text, source, SpecError)


def model_spec_schema() -> str:
    """Return the JSON Schema of model specs, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ModelSpec.model_json_schema(by_alias=True)}
    return json.dumps(schema, indent=2) + "\n"


def load_spec(project: Project, model: str) -> ModelSpec:
    """Load and validate ``config/models/<model>.yaml``.

    Raises:
        UsageError: the spec does not exist.
        SpecError: the spec violates the format, or its name differs from the file name.
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
