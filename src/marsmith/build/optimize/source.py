"""An old archive to optimize: its content, and the reasons to refuse it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.archive import Archive, Manifest
from marsmith.archive.admit import Policy, admit
from marsmith.archive.examples import FILE_NAME as EXAMPLES_FILE
from marsmith.archive.examples import FOLDER as EXAMPLES_FOLDER
from marsmith.archive.examples import parse_examples
from marsmith.child_processes import temporary_folder
from marsmith.config.model_config import FILE_NAME as CONFIG_FILE
from marsmith.config.model_config import HANDLER_KEY, ModelConfig
from marsmith.errors import ArchiveError, ConfigError
from marsmith.strict_yaml import dump, load_model_config, parse

STOCK_HANDLER = "image_classifier"
LABELS_FILE = "index_to_name.json"
_EXPORT_FILE = "MAR-INF/export.json"
# TorchServe's defaults are kept for unknown handlers, which may not support batches.
_ONE_BY_ONE = {"batchSize": 1, "maxBatchDelay": 1}


@dataclass(frozen=True)
class OldArchive:
    """An unpacked archive with a TorchScript module.

    Attributes:
        archive: the opened archive.
        folder: folder of its members.
        config: its model config; empty if it has none.
    """

    archive: Archive
    folder: Path
    config: Mapping[str, Any]

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.archive.manifest

    @property
    def is_stock(self) -> bool:
        """Whether its handler is TorchServe's own image_classifier."""
        return self.manifest.handler == STOCK_HANDLER

    @property
    def serialized_file(self) -> Path:
        """The TorchScript file."""
        return self.folder / str(self.manifest.serialized_file)

    def kept(self) -> dict[str, Path]:
        """Return the members that are copied unchanged into the new archive, by name."""
        replaced = {self.manifest.serialized_file, self.manifest.config_file}
        names = [name for name in self.archive.members if name not in replaced and not name.startswith("MAR-INF/")]
        return {name: self.folder / name for name in names}

    def examples(self) -> list[Path]:
        """Return the inputs of its own examples."""
        listed = self.folder / EXAMPLES_FILE
        if not listed.is_file():
            return []
        examples = parse_examples(listed.read_text(encoding="utf-8"), EXAMPLES_FILE)
        return [self.folder / EXAMPLES_FOLDER / example.input for example in examples]


@contextmanager
def opened(path: Path, policy: Policy) -> Iterator[OldArchive]:
    """Open, admit and unpack an archive temporarily.

    Raises:
        ArchiveError: it is damaged or hostile, does not match its digests, is not admitted, or cannot be optimized.
        ConfigError: its model config is not YAML.
    """
    archive = Archive.open(path)
    _check_kind(archive)
    admit(archive, policy)
    text = archive.text(archive.manifest.config_file) if archive.manifest.config_file else None
    config = load_model_config(text, f"{path.name}/{archive.manifest.config_file}", ConfigError) if text else {}
    with temporary_folder("marsmith-") as scratch:
        yield OldArchive(archive, archive.extract(scratch / "archive"), config)


def _check_kind(archive: Archive) -> None:
    """Refuse an archive that, by its manifest, has no TorchScript image classifier."""
    manifest, name = archive.manifest, archive.path.name
    if manifest.marsmith is not None and _EXPORT_FILE in archive.members:
        raise ArchiveError(
            f"{name} was exported by marsmith already",
            tip="its form is chosen by its spec: marsmith export MODEL --precision auto --engine auto --relock",
        )
    if manifest.model_file:
        raise ArchiveError(
            f"{name} holds an eager module: the class in {manifest.model_file} and a state dict",
            tip="write a recipe that builds this class (docs/reference/recipes.md), then: marsmith export MODEL",
        )
    if not manifest.serialized_file:
        raise ArchiveError(f"{name} has no serialized file: there is nothing to optimize")
    builtin = not manifest.handler.partition(":")[0].endswith(".py")
    if builtin and manifest.handler != STOCK_HANDLER:
        raise ArchiveError(
            f"{name} has TorchServe's own handler {manifest.handler!r}; optimize supports {STOCK_HANDLER!r}, "
            "and handlers that lie in the archive",
            tip="docs/reference/handlers.md names our counterpart; build with it from a spec",
        )
    if not builtin and manifest.handler.partition(":")[0] not in archive.members:
        raise ArchiveError(f"{name}: the handler {manifest.handler!r} is not in the archive")


@dataclass(frozen=True)
class NewConfig:
    """The new model config.

    Attributes:
        serving: TorchServe's keys.
        rest: other keys of the old one, for the archive's own handler.
        dropped: keys without a meaning now.
    """

    serving: ModelConfig
    rest: Mapping[str, Any]
    dropped: tuple[str, ...]

    def render(self, handler: Mapping[str, Any]) -> bytes:
        """Render it, with the block for our handler if it is used."""
        block = {HANDLER_KEY: dict(handler)} if handler else {}
        return dump({**self.serving.torchserve_keys(), **self.rest, **block}).encode()


def new_config(old: Mapping[str, Any], *, stock: bool, cores: int) -> NewConfig:
    """Return the new model config: the old one's keys, and the six required ones.

    Args:
        old: the old model config.
        stock: whether our handler replaces the stock one.
        cores: number of workers if TorchServe would start one per core.

    Raises:
        ConfigError: TorchServe would ignore the value of one of its keys.
    """
    known = {str(field.alias) for field in ModelConfig.model_fields.values()}
    # TorchServe treats a delay of 0 as missing.
    given = {key: value for key, value in old.items() if key in known and (key, value) != ("maxBatchDelay", 0)}
    if not stock:
        given = {"minWorkers": cores, **_ONE_BY_ONE, **given}
    given.setdefault("maxWorkers", given.get("minWorkers", 1))
    given.setdefault("minWorkers", 1)
    serving = parse(ModelConfig, dump(given), f"the old archive's {CONFIG_FILE}", ConfigError)
    rest = {key: value for key, value in old.items() if key not in known}
    return NewConfig(serving, {} if stock else rest, tuple(sorted(rest)) if stock else ())
