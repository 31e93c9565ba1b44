"""The server config of a run: the project's ``config.properties`` with absolute paths and complete addresses.

The server runs in the project's run folder, so relative paths in the file are resolved against the project's root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from marsmith import run_state
from marsmith.client.hosts import is_loopback
from marsmith.config.properties import ENCODING, Entry, as_mapping, parse_properties
from marsmith.config.server_keys import KNOWN_KEYS, PATH_KEYS, is_true, variable
from marsmith.errors import ConfigError, NotRunningError, PreflightError
from marsmith.names import did_you_mean
from marsmith.project import Project

FILE_NAME = "config.properties"

# Keys that determine the model store.
_STORE_KEYS = frozenset({"model_store", "enable_envvars_config"})
_REFERENCE = re.compile(r"\$\$([^$]+)\$\$")
_LOG_CONFIG = re.compile(r"-Dlog4j2?\.configurationFile=(?P<uri>file://)?(?P<path>\S+)")
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - read, not bound
DEFAULT_ADDRESSES = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "grpc_inference_address": "127.0.0.1",
    "grpc_inference_port": "7070",
    "grpc_management_address": "127.0.0.1",
    "grpc_management_port": "7071",
}


@dataclass(frozen=True)
class ListenAddress:
    """Address of one API.

    Attributes:
        key: key in the server config.
        scheme: ``http``, ``https``, ``grpc``, or ``grpcs`` for gRPC over TLS.
        host: bound address.
        port: bound port.
    """

    key: str
    scheme: str
    host: str
    port: int

    @property
    def is_secure(self) -> bool:
        """Whether it uses TLS."""
        return self.scheme in {"https", "grpcs"}

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to it."""
        return is_loopback(self.host)

    @property
    def client_host(self) -> str:
        """The host for a client on this machine."""
        return _ANY_HOST.get(self.host, self.host)

    @property
    def authority(self) -> str:
        """``host:port`` for a client on this machine."""
        host = self.client_host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """``scheme://host:port`` for a client on this machine."""
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True)
class Addresses:
    """Addresses of the APIs of one server."""

    inference: ListenAddress
    management: ListenAddress
    metrics: ListenAddress
    grpc_inference: ListenAddress
    grpc_management: ListenAddress

    def all(self) -> tuple[ListenAddress, ...]:
        """Return every address once."""
        endpoints = (self.inference, self.management, self.metrics, self.grpc_inference, self.grpc_management)
        return tuple({(e.host, e.port): e for e in reversed(endpoints)}.values())[::-1]


def read_server_config(project: Project) -> list[Entry]:
    """Read the project's ``config.properties``.

    Raises:
        PreflightError: the file is missing or cannot be read.
        ConfigError: the file is not in the format of Java properties.
    """
    path = project.server_config
    try:
        text = path.read_text(encoding=ENCODING)
    except OSError as error:
        raise PreflightError(f"cannot read the server config {path}: {error.strerror}") from None
    return parse_properties(text, str(path))


def started_with(project: Project) -> dict[str, str]:
    """Return the server config that the project's server was started with.

    Raises:
        OSError: the file does not exist.
    """
    return as_mapping(parse_properties((project.run / FILE_NAME).read_text(encoding=ENCODING)))


def model_store(project: Project) -> Path:
    """Return the folder for finished archives, from which the next server loads them.

    Raises:
        PreflightError: the server config cannot be read.
        ConfigError: it is not in the format of Java properties, or refers to a variable that is not set.
    """
    entries = read_server_config(project) if project.server_config.exists() else []
    return store_folder(project, entries, os.environ)


def store_folder(project: Project, entries: Iterable[Entry], environment: Mapping[str, str]) -> Path:
    """Return the model store in these entries of a server config; errors in other entries are ignored.

    Raises:
        ConfigError: the entries refer to a variable that is not set.
    """
    own = [entry for entry in entries if entry.key in _STORE_KEYS]
    return Path(effective_config(project, own, environment)["model_store"])


def served_store(project: Project) -> Path:
    """Return the model store of the running server; without a running server, that of the next one."""
    try:
        run_state.read(project)
        return Path(started_with(project)["model_store"])
    except (NotRunningError, FileNotFoundError):
        return model_store(project)


def unknown_keys(entries: Iterable[Entry]) -> list[str]:
    """Return one sentence for each key that TorchServe would ignore."""
    return [
        f"line {entry.line}: unknown key {entry.key!r}{did_you_mean(entry.key, KNOWN_KEYS)}"
        for entry in entries
        if entry.key not in KNOWN_KEYS
    ]


def effective_config(project: Project, entries: Iterable[Entry], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the effective server config of this project.

    Environment variables are substituted and paths are absolute. Missing keys that marsmith needs are added: the
    project's model store, and all archives in it.

    Raises:
        ConfigError: a value refers to an environment variable that is not set.
    """
    config = _with_variables(as_mapping(entries), environment)
    _fill_references(config, environment, str(project.server_config))
    config.setdefault("model_store", str(project.model_store))
    config.setdefault("load_models", "all")
    for key in PATH_KEYS & config.keys():
        config[key] = str(_absolute(project.root, config[key]))
    if "vmargs" in config:
        config["vmargs"] = _with_absolute_log_config(config["vmargs"], project.root)
    return config


def addresses(config: Mapping[str, str], source: str = FILE_NAME) -> Addresses:
    """Return the addresses of the APIs.

    Raises:
        ConfigError: an address is not of the form ``http://host:port``, or a port is invalid.
    """
    problems: list[str] = []
    endpoints = {}
    for api in ("inference", "management", "metrics"):
        endpoints[api] = _rest_endpoint(f"{api}_address", config, problems)
    for api in ("inference", "management"):
        endpoints[f"grpc_{api}"] = _grpc_endpoint(f"grpc_{api}", config, problems)
    if problems:
        raise ConfigError(source, problems)
    return Addresses(**endpoints)


def uses_tokens(config: Mapping[str, str]) -> bool:
    """Whether requests need a token."""
    return config.get("disable_token_authorization", "false").strip().lower() != "true"


def _with_variables(config: dict[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Apply TS_* variables as TorchServe does, if the file allows them."""
    if config.get("enable_envvars_config", "false").lower() != "true":
        return config
    overriding = {key: environment.get(variable(key) or "") for key in KNOWN_KEYS}
    if config.get("use_env_allowed_urls", "false").lower() != "true":
        overriding.pop("allowed_urls", None)
    return config | {key: value for key, value in overriding.items() if value is not None}


def _fill_references(config: dict[str, str], environment: Mapping[str, str], source: str) -> None:
    missing = sorted({name for value in config.values() for name in _REFERENCE.findall(value)} - environment.keys())
    if missing:
        raise ConfigError(source, [f"the environment variable {name} is not set" for name in missing])
    for key, value in config.items():
        config[key] = _REFERENCE.sub(lambda match: environment[match[1]], value)


def _absolute(root: Path, value: str) -> Path:
    return Path(os.path.normpath(root / value))


def log_config(vmargs: str, root: Path) -> Path | None:
    """Return the absolute path of the log4j configuration in options for Java; None if there is none."""
    match = _LOG_CONFIG.search(vmargs)
    return _log_config(match, root) if match else None


def _log_config(match: re.Match[str], root: Path) -> Path:
    return _absolute(root, unquote(match["path"]) if match["uri"] else match["path"])


def _with_absolute_log_config(vmargs: str, root: Path) -> str:
    """Use a URI, which contains no character that would end an option."""
    return _LOG_CONFIG.sub(lambda m: f"-Dlog4j.configurationFile={_log_config(m, root).as_uri()}", vmargs)


def _rest_endpoint(key: str, config: Mapping[str, str], problems: list[str]) -> ListenAddress:
    value = config.get(key, DEFAULT_ADDRESSES[key]).strip()
    standard = {"http": {"management_address": 8081, "metrics_address": 8082}.get(key, 80)}
    standard["https"] = {"management_address": 8444, "metrics_address": 8445}.get(key, 443)
    try:
        parts = urlsplit(value)
        port, host = parts.port or standard[parts.scheme.lower()], parts.hostname
    except (ValueError, KeyError):
        host = None
    if not host:
        problems.append(f"{key}={value} is not an address of the form http://127.0.0.1:8080")
        return ListenAddress(key, "http", "", 0)
    return ListenAddress(key, parts.scheme.lower(), host, port)


def _grpc_endpoint(prefix: str, config: Mapping[str, str], problems: list[str]) -> ListenAddress:
    key = f"{prefix}_port"
    scheme = "grpcs" if is_true(config.get("enable_grpc_ssl", "false")) else "grpc"
    host = config.get(f"{prefix}_address", DEFAULT_ADDRESSES[f"{prefix}_address"]).strip()
    value = config.get(key, DEFAULT_ADDRESSES[key]).strip()
    if not value.isascii() or not value.isdigit() or not 0 < int(value) < 65536:
        problems.append(f"{key}={value} is not a port")
        return ListenAddress(key, scheme, host, 0)
    return ListenAddress(key, scheme, host, int(value))
