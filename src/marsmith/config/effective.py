"""Effective configuration: each value, where it comes from, and the values that it overrides.

The order of precedence is TorchServe 0.12.0's own (ConfigManager, ModelManager.createModel,
ModelServer.initModelStore). For a server: command line, TS_* variables if the file allows them, the file, defaults. For
a version it differs between keys: a batch size and a delay given to the API override the model config, but timeouts and
workers given there do not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith import strict_yaml
from marsmith.archive.store import StoredArchive
from marsmith.config.lint.model_config import MAX_JAVA_INTEGER, MIN_JAVA_INTEGER
from marsmith.config.properties import Entry
from marsmith.config.server_config import FILE_NAME, effective_config
from marsmith.config.server_keys import KEY_TYPES, KNOWN_KEYS, is_true, number, variable
from marsmith.errors import ConfigError
from marsmith.json_reader import read_json
from marsmith.project import Project

SERVE = "marsmith serve"
DEFAULT = "TorchServe's default"
ANY_MODEL_CONFIG = "TorchServe's default for an archive with a model config"
# ConfigManager.java reads it regardless of enable_envvars_config.
_ALWAYS_VARIABLE = "ts_open_inference_protocol"
_TIMEOUT_S = 120
_RETRY_TIMEOUT_S = 300
_DELAY_MS = 100


@dataclass(frozen=True)
class ValueSource:
    """A value, and where it comes from."""

    value: str
    origin: str


@dataclass(frozen=True)
class Setting:
    """An effective value.

    Attributes:
        key: its name in the file that TorchServe reads.
        value: value as text; empty for none.
        origin: description of where it comes from.
        overrode: overridden values, in order of precedence.
    """

    key: str
    value: str
    origin: str
    overrode: tuple[ValueSource, ...] = ()


@dataclass(frozen=True)
class VersionSettings:
    """Effective settings of one version in the store."""

    model_name: str
    model_version: str
    settings: tuple[Setting, ...]

    def value(self, key: str) -> str:
        """Return the value of a key; raises KeyError if there is none."""
        return {setting.key: setting.value for setting in self.settings}[key]


def server_settings(project: Project, entries: Iterable[Entry], environment: Mapping[str, str]) -> dict[str, Setting]:
    """Return the effective settings of a server of this project, sorted by key.

    Args:
        project: project of the server.
        entries: entries of its ``config.properties``.
        environment: environment variables of the server.

    Raises:
        ConfigError: the file refers to a variable that is not set.
    """
    listed = list(entries)
    definite = effective_config(project, listed, environment)
    with_variables = is_true(
        next((entry.value for entry in reversed(listed) if entry.key == "enable_envvars_config"), "")
    )
    settings = {}
    for key in sorted(KNOWN_KEYS):
        in_file = [
            ValueSource(entry.value, f"{FILE_NAME}:{entry.line}") for entry in reversed(listed) if entry.key == key
        ]
        sources = [*_variable_sources(key, definite, environment, enabled=with_variables), *in_file]
        if sources and key in definite and key != _ALWAYS_VARIABLE:
            # Paths are absolute and variables are substituted here.
            sources[0] = ValueSource(definite[key], sources[0].origin)
        settings[key] = _first(key, [*sources, *_serve_sources(key, definite)], KEY_TYPES[key].default)
    return settings


def version_settings(
    stored: StoredArchive,
    server: Mapping[str, Setting],
    *,
    cores: int,
    gpus: int = 0,
    request: Mapping[str, int] | None = None,
) -> VersionSettings:
    """Return the effective settings of a version that is loaded from the store.

    Args:
        stored: archive of the version.
        server: result of ``server_settings``.
        cores: number of processor cores that the frontend counts.
        gpus: number of GPUs that the frontend counts.
        request: parameters of POST /models with TorchServe's names, such as batchSize and initialWorkers. None: loaded
            at the start.

    Raises:
        ArchiveError, ConfigError: the model config cannot be read.
    """
    name, version = stored.version
    file = stored.manifest.config_file
    config = _ModelConfig.read(stored, Path(file).name) if file else None
    decide = _Decision(config, _listed(server["models"], name, version), server, request, max(1, gpus or cores))
    settings = [*decide.workers(), decide.batch("batchSize", 1), decide.batch("maxBatchDelay", _DELAY_MS)]
    settings += [decide.timeout(key) for key in ("responseTimeout", "startupTimeout")]
    settings += [decide.queue(), decide.retries()]
    known = {setting.key for setting in settings}
    rest = [_first(key, [source], "") for key, source in config.rest(known)] if config else []
    return VersionSettings(name, version, (*settings, *rest))


def _variable_sources(
    key: str, definite: Mapping[str, str], environment: Mapping[str, str], *, enabled: bool
) -> list[ValueSource]:
    name = variable(key)
    if name is None or name not in environment:
        return []
    if key == _ALWAYS_VARIABLE:
        value = "true" if environment[name] == "oip" else "false"
        return [ValueSource(value, f"${name}")] if environment[name] else []
    if not enabled or (key == "allowed_urls" and not is_true(definite.get("use_env_allowed_urls", ""))):
        return []
    return [ValueSource(environment[name], f"${name}")]


def _serve_sources(key: str, definite: Mapping[str, str]) -> list[ValueSource]:
    """Return the values that `marsmith serve` sets if nothing else does."""
    if key in {"model_store", "load_models"}:
        return [ValueSource(definite[key], SERVE)]
    if key == "python":
        return [ValueSource(sys.executable, SERVE)]
    if key == "initial_worker_port":
        return [ValueSource("the first free of 9000, 9100, ...", SERVE)]
    return []


def _first(key: str, sources: Iterable[ValueSource], default: str, default_origin: str = DEFAULT) -> Setting:
    """Return the setting of the first source that has the key."""
    listed = list(sources)
    if not listed:
        return Setting(key, default, default_origin)
    winner, *others = listed
    return Setting(key, winner.value, winner.origin, tuple(other for other in others if other.origin != SERVE))


@dataclass(frozen=True)
class _ModelConfig:
    """A parsed model config, as TorchServe reads it."""

    data: Mapping[str, Any]
    source: str

    @classmethod
    def read(cls, stored: StoredArchive, member: str) -> _ModelConfig:
        source = f"{stored.path.name}/{member}"
        return cls(strict_yaml.load_model_config(stored.archive.text(member) or "", source, ConfigError), source)

    def integer(self, key: str, *, lowest: int = 1, raised: bool = False) -> ValueSource | None:
        """Return a number as ModelConfig.java keeps it: it drops other types, and values below ``lowest``.

        Args:
            key: name of the key.
            lowest: smallest valid value.
            raised: whether a smaller value is raised to ``lowest`` instead of dropped.
        """
        value = self.data.get(key)
        if type(value) is not int or not MIN_JAVA_INTEGER <= value <= MAX_JAVA_INTEGER:
            return None
        kept = max(lowest, int(value)) if raised else int(value)
        return ValueSource(str(kept), self.place(key)) if kept >= lowest else None

    def place(self, key: str) -> str:
        line = strict_yaml.line_of(self.data, key)
        return f"{self.source}:{line}" if line else self.source

    def rest(self, known: Iterable[str]) -> list[tuple[str, ValueSource]]:
        left = [key for key in self.data if key not in set(known)]
        return [(str(key), ValueSource(_words(self.data[key]), self.place(key))) for key in left]


@dataclass(frozen=True)
class _Decision:
    """Precedence of the sources for each key of one version."""

    config: _ModelConfig | None
    listed: Mapping[str, ValueSource]
    server: Mapping[str, Setting]
    request: Mapping[str, int] | None
    default_workers: int

    def batch(self, key: str, default: int) -> Setting:
        """Batch size and delay: API, model config, ``models``, default."""
        own = self.config.integer(key, raised=key == "batchSize") if self.config else None
        return _first(key, _given(self._asked(key), own, self.listed.get(key)), str(default))

    def timeout(self, key: str) -> Setting:
        """Timeouts: model config (any), ``models``, API, server config."""
        server = self.server["default_response_timeout" if key == "responseTimeout" else "default_startup_timeout"]
        outer = _given(self.listed.get(key), self._asked(key), _explicit(server))
        if self.config is None:
            return _first(key, outer, str(_TIMEOUT_S))
        own = self.config.integer(key) or ValueSource(str(_TIMEOUT_S), ANY_MODEL_CONFIG)
        return _first(key, [own, *outer], "")

    def workers(self) -> list[Setting]:
        """Workers: a model config with both keys in order, ``models`` or the API's initial_workers, the server."""
        least = self.config.integer("minWorkers", raised=True) if self.config else None
        most = self.config.integer("maxWorkers") if self.config else None
        complete = least is not None and most is not None and int(most.value) >= int(least.value)
        own = {"minWorkers": least, "maxWorkers": most} if complete else {}
        default = _explicit(self.server["default_workers_per_model"])
        settings = []
        for key in ("minWorkers", "maxWorkers"):
            listed = self.listed.get(key) if self.request is None else None
            sources = _given(own.get(key), listed, self._asked("initialWorkers"), default)
            origin = f"{DEFAULT}: one a GPU, or one a core"
            # A version that is registered without workers has none.
            last = self.default_workers if self.request is None else 0
            settings.append(_first(key, sources, str(last), origin))
        return settings

    def queue(self) -> Setting:
        """Queue: model config, server config."""
        own = self.config.integer("jobQueueSize") if self.config else None
        server = self.server["job_queue_size"]
        return _first("jobQueueSize", _given(own, _explicit(server)), server.value)

    def retries(self) -> Setting:
        """Retries: model config, default."""
        own = self.config.integer("maxRetryTimeoutInSec", lowest=0, raised=True) if self.config else None
        return _first("maxRetryTimeoutInSec", _given(own), str(_RETRY_TIMEOUT_S))

    def _asked(self, key: str) -> ValueSource | None:
        return ValueSource(str(self.request[key]), "POST /models") if self.request and key in self.request else None


def _given(*sources: ValueSource | None) -> list[ValueSource]:
    return [source for source in sources if source is not None]


def _explicit(setting: Setting) -> ValueSource | None:
    """Return a server setting that a user made; 0 workers mean none."""
    if setting.origin == DEFAULT or (setting.key == "default_workers_per_model" and number(setting.value) == 0):
        return None
    return ValueSource(setting.value, setting.origin)


def _listed(models: Setting, name: str, version: str) -> dict[str, ValueSource]:
    """Return the values of a version in the server config's JSON ``models``, without those that TorchServe drops."""
    try:
        found = read_json(models.value or "{}").get(name, {}).get(version, {})
        return {
            key: ValueSource(str(value), f"models in {models.origin}")
            for key, value in found.items()
            if type(value) is int and value > 0
        }
    except (ValueError, AttributeError):
        return {}


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
