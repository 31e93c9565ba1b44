"""What a server served when it was last looked at: ``.marsmith/state/served.json``.

TorchServe forgets at its end which version answers by default, how many workers were asked for, and what was registered
or unregistered while it ran. This text keeps it, so that the next start can bring it back.
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
    """How a version runs: counts of workers and requests, delays and timeouts in the units that the names say."""

    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int
    startup_timeout_s: int


@dataclass(frozen=True)
class ArchiveBytes:
    """Which archive it was, beyond its name.

    Attributes:
        sha256: of the file, in hex.
        ours: whether marsmith had made it.
    """

    sha256: str
    ours: bool


@dataclass(frozen=True)
class ServedVersion:
    """One version that was registered.

    Attributes:
        archive: what it was registered from, as the server says it: a file name in the model store, or a URL.
        running: how it ran.
        configured: how its files alone would have run it when it was first seen; None where that could not be told.
        bytes: of the archive when it was first seen; None where an earlier marsmith saw it, or it could not be read.
    """

    archive: str
    running: Parameters
    configured: Parameters | None
    bytes: ArchiveBytes | None = None


@dataclass(frozen=True)
class Unregistered:
    """One version that was unregistered: its archive as in ``ServedVersion``, and its bytes where they are known."""

    archive: str
    bytes: ArchiveBytes | None = None


@dataclass(frozen=True)
class ServedModel:
    """One model: the version that answered when none was named, and all versions by their name."""

    default: str
    versions: Mapping[str, ServedVersion]


@dataclass(frozen=True)
class ServerState:
    """Everything that a server served.

    Attributes:
        models: by name.
        unregistered: versions that were unregistered while it ran, with the archive that lies in the store still.
    """

    models: Mapping[str, ServedModel] = field(default_factory=dict)
    unregistered: Mapping[Version, Unregistered] = field(default_factory=dict)

    def version(self, version: Version) -> ServedVersion | None:
        """Return what is known of a version; None where it was not served."""
        model = self.models.get(version[0])
        return model.versions.get(version[1]) if model else None

    def archive(self, version: Version) -> str:
        """Return what a version was registered from; raises KeyError for one that was not served."""
        return self.models[version[0]].versions[version[1]].archive

    def file(self, version: Version) -> str:
        """Return the file name in the model store of a version's archive; raises KeyError for one not served."""
        return self.archive(version).rpartition("/")[2]

    def files(self) -> list[str]:
        """Return the file names in the model store of all archives that were served."""
        return [self.file(version) for version in self.served()]

    def served(self) -> list[Version]:
        """Return the versions that were served, sorted."""
        return sorted((name, version) for name, model in self.models.items() for version in model.versions)


def render_state(state: ServerState) -> str:
    """Render the state as JSON, in an order of its own: equal states give equal texts."""
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
    """Parse the text of a state; ``parse_state(render_state(state)) == state``.

    Raises:
        NewerFormatError: a later marsmith wrote it.
        FormatError: it is not JSON, of another format, or something is missing or impossible in it.
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
    """The text, in which a version cannot be a key."""

    models: dict[str, ServedModel]
    unregistered: tuple[_Left, ...]


def _check(name: str, model: ServedModel) -> None:
    check_model_name(name)
    if model.default not in model.versions:
        raise UsageError(f"the default version {model.default!r} of {name} is not among its versions")
