"""Content of ``.marsmith/state/served.json``: what a server served at the last look.

When TorchServe ends, it loses the default versions, the requested numbers of workers, and which versions were
registered or unregistered at run time. This file keeps them for the next start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from marsmith import state_files
from marsmith.errors import FormatError, UsageError
from marsmith.names import check_model_name

FORMAT = 1

Version = tuple[str, str]


@dataclass(frozen=True)
class Parameters:
    """Parameters of a version: numbers of workers and requests, delays and timeouts; names give the units."""

    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int
    startup_timeout_s: int


@dataclass(frozen=True)
class ArchiveBytes:
    """Identity of an archive besides its name.

    Attributes:
        sha256: SHA-256 of the file in hex.
        ours: whether marsmith built it.
    """

    sha256: str
    ours: bool


@dataclass(frozen=True)
class ServedVersion:
    """A version that was registered.

    Attributes:
        archive: source of the registration, as in the server: a file name in the model store, or a URL.
        running: parameters in the server.
        configured: parameters from its files alone when it was first seen; None if unknown.
        bytes: identity of the archive when it was first seen; None if an earlier marsmith saw it, or if it could not be
            read.
    """

    archive: str
    running: Parameters
    configured: Parameters | None
    bytes: ArchiveBytes | None = None


@dataclass(frozen=True)
class Unregistered:
    """A version that was unregistered: its archive as in ``ServedVersion``, and its identity if known."""

    archive: str
    bytes: ArchiveBytes | None = None


@dataclass(frozen=True)
class ServedModel:
    """One model: its default version, and all versions by name."""

    default: str
    versions: Mapping[str, ServedVersion]


@dataclass(frozen=True)
class ServerState:
    """All models of a server.

    Attributes:
        models: models by name.
        unregistered: versions that were unregistered at run time and whose archive is still in the store.
    """

    models: Mapping[str, ServedModel] = field(default_factory=dict)
    unregistered: Mapping[Version, Unregistered] = field(default_factory=dict)

    def version(self, version: Version) -> ServedVersion | None:
        """Return the state of a version; None if it was not served."""
        model = self.models.get(version[0])
        return model.versions.get(version[1]) if model else None

    def archive(self, version: Version) -> str:
        """Return the archive of a version; raises KeyError if it was not served."""
        return self.models[version[0]].versions[version[1]].archive

    def file(self, version: Version) -> str:
        """Return the file name of a version's archive in the model store; raises KeyError if it was not served."""
        return self.archive(version).rpartition("/")[2]

    def files(self) -> list[str]:
        """Return the file names in the model store of all archives that were served."""
        return [self.file(version) for version in self.served()]

    def served(self) -> list[Version]:
        """Return the versions that were served, sorted."""
        return sorted((name, version) for name, model in self.models.items() for version in model.versions)


def render_state(state: ServerState) -> str:
    """Render the state as JSON in a fixed order, so that equal states give equal texts."""
    models = {
        name: {
            "default": model.default,
            "versions": {version: asdict(model.versions[version]) for version in sorted(model.versions)},
        }
        for name, model in sorted(state.models.items())
    }
    unregistered = [
        {"model": name, "version": version, **asdict(left)}
        for (name, version), left in sorted(state.unregistered.items())
    ]
    return json.dumps({"format": FORMAT, "models": models, "unregistered": unregistered}, indent=2) + "\n"


def parse_state(text: str, source: str = "served.json") -> ServerState:
    """Parse a state; ``parse_state(render_state(state)) == state``.

    Raises:
        NewerFormatError: a later marsmith wrote it.
        FormatError: it is not JSON, has another format, or a value is missing or invalid.
    """
    file = state_files.parse(_File, text, source, version=FORMAT)
    try:
        for name, model in file.models.items():
            _check(name, model)
        left = {(check_model_name(each.model), each.version): each.left for each in file.unregistered}
    except UsageError as error:
        raise FormatError(source, [error.message]) from None
    return ServerState(file.models, left)


@dataclass(frozen=True)
class _Left:
    model: str
    version: str
    archive: str
    bytes: ArchiveBytes | None = None

    @property
    def left(self) -> Unregistered:
        return Unregistered(self.archive, self.bytes)


@dataclass(frozen=True)
class _File:
    """The JSON structure, in which a version cannot be a key."""

    models: dict[str, ServedModel]
    unregistered: tuple[_Left, ...]


def _check(name: str, model: ServedModel) -> None:
    check_model_name(name)
    if model.default not in model.versions:
        raise UsageError(f"the default version {model.default!r} of {name} is not among its versions")
