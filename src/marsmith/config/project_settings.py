"""Settings of a project, ``config/marsmith.yaml``: those that do not belong to one model or to TorchServe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from marsmith import strict_yaml
from marsmith.archive.admit import Makers, Policy, Signatures
from marsmith.config.server_config import ListenAddress
from marsmith.errors import ConfigError, MarsmithError, ProjectError
from marsmith.project import PROJECT_VARIABLE, Project, find_project
from marsmith.strict_yaml import Strict

FrontKind = Literal["envoy", "none"]
LARGEST_PORT = 65_535


def _not_empty(path: str) -> str:
    if not path.strip():
        raise ValueError("expected the path of a file")
    return path


def _address_or_none(text: str) -> str:
    host, colon, port = text.rpartition(":")
    right = bool(colon and host.strip("[]")) and port.isascii() and port.isdigit() and int(port) <= LARGEST_PORT
    if text != "none" and not right:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:8083, or none")
    return text


class ProjectSettings(Strict):
    """Settings for all models of a project.

    Attributes:
        archives: ``any`` admits archives of other tools with a warning, because they have no digests; ``ours`` refuses
            them.
        signatures: ``required`` refuses an archive that is not signed by a trusted key.
        trusted_keys: public keys in PEM, as paths relative to the project's root. A signature beside an archive must be
            by one of them, even if signatures are optional.
        front: ``envoy`` puts Envoy in front of TorchServe, and it keeps the public address of the inference API.
            ``none`` lets TorchServe listen there itself.
        front_metrics_port: port of the front's own metrics on the loopback; 0: a free one at each start.
        listener: ``host:port`` at which the supervisor answers /metrics, /ready and /live; port 0: a free one at each
            start. ``none``: it does not listen.
    """

    archives: Makers = "any"
    signatures: Signatures = "optional"
    trusted_keys: list[Annotated[str, AfterValidator(_not_empty)]] = Field(default_factory=list, validate_default=True)
    front: FrontKind = "envoy"
    front_metrics_port: int = Field(default=0, ge=0, le=LARGEST_PORT)
    listener: Annotated[str, AfterValidator(_address_or_none)] = "127.0.0.1:8083"

    @field_validator("trusted_keys")
    @classmethod
    def _enough(cls, keys: list[str], info: ValidationInfo) -> list[str]:
        if not keys and info.data.get("signatures") == "required":
            raise ValueError("signatures: required needs at least one key")
        return keys


def parse_settings(text: str, source: str) -> ProjectSettings:
    """Parse and validate the settings; a text without keys gives the defaults.

    Raises:
        ConfigError: there are problems; the message lists all of them, with the nearest known key for an unknown one.
    """
    lines = (line.strip() for line in text.splitlines())
    if all(not line or line.startswith("#") for line in lines):
        return ProjectSettings()
    return strict_yaml.parse(ProjectSettings, text, source, ConfigError)


def settings_schema() -> str:
    """Return the JSON Schema of the settings, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ProjectSettings.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def listener_address(settings: ProjectSettings) -> ListenAddress | None:
    """Return the address of the supervisor's listener; None if there is none."""
    if settings.listener == "none":
        return None
    host, _, port = settings.listener.rpartition(":")
    return ListenAddress("listener", "http", host.strip("[]"), int(port))


def load_settings(project: Project) -> ProjectSettings:
    """Load a project's settings; without the file all have their defaults.

    Raises:
        ConfigError: the file violates the format, or cannot be read.
    """
    source = str(project.settings_file.relative_to(project.root))
    try:
        text = project.settings_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ProjectSettings()
    except OSError as error:
        raise ConfigError(source, [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(source, [f"not UTF-8: {error}"]) from None
    return parse_settings(text, source)


def admission_policy(project: Project) -> Policy:
    """Return the policy for archives of a project.

    Raises:
        ConfigError: the settings violate the format, or a trusted key is not a public key.
    """
    settings = load_settings(project)
    problems = key_problems(settings, project.root)
    if problems:
        source = str(project.settings_file.relative_to(project.root))
        raise ConfigError(source, [f"trusted_keys: {text}" for text in problems.values()])
    keys = tuple(project.root / key for key in settings.trusted_keys)
    return Policy(settings.archives, settings.signatures, keys)


def policy_here() -> Policy:
    """Return the policy of the project of the working folder; outside of a project, the default policy.

    Raises:
        ConfigError: as ``admission_policy``.
        ProjectError: MARSMITH_PROJECT is not a project, so the intended policy is unknown.
    """
    try:
        project = find_project()
    except ProjectError:
        if os.environ.get(PROJECT_VARIABLE):
            raise
        return Policy()
    return admission_policy(project)


def key_problems(settings: ProjectSettings, root: Path) -> dict[int, str]:
    """Return the problems of trusted keys by their index."""
    if not settings.trusted_keys:
        return {}
    # Imported late, because most projects have no trusted keys and do not need cryptography.
    from marsmith.archive.signature import check_public_key

    problems = {}
    for index, key in enumerate(settings.trusted_keys):
        try:
            check_public_key(root / key)
        except MarsmithError as error:
            problems[index] = error.message
    return problems
