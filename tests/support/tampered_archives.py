"""Archives of ours around the handlers that we ship, and what somebody may do to them afterwards."""

from __future__ import annotations

import json
import platform
import py_compile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import cache_from_source
from pathlib import Path

import torch

from marsmith.archive import Manifest, Member, write_archive
from marsmith.runtime.imports import local_imports
from support.handler_fixtures import classifier_folder, write_model
from support.projects import REPOSITORY
from support.raw_archives import Entry, raw_zip

SHIPPED = "image_classifier_handler.py"
# A handler of the user's own, not derived from ours: nothing in the worker proves the archive.
OWN = b"""
import io, os, torch

class Colours:
    def initialize(self, context):
        self.model = torch.jit.load(os.path.join(context.system_properties["model_dir"], "model.pt"))

    def handle(self, data, context):
        return ["own" for _ in data]
"""
# Ours, with a line for each request in a file of its own and a word from one that the archive carries.
WRITING = b"""
import image_classifier_handler

class Writing(image_classifier_handler.ImageClassifierHandler):
    def decode(self, request):
        with open("requests.log", "a") as log:
            log.write(open("core/word.txt").read())
        return super().decode(request)
"""
_CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 2,
    "maxBatchDelay": 1,
    "responseTimeout": 60,
    "startupTimeout": 280,
    "maxRetryTimeoutInSec": 10,
}
Tamper = Callable[[Path, Path], None]


def shipped_archive(
    target: Path,
    *,
    name: str = "tiny",
    version: str = "1.0",
    own: bool = False,
    needs: str = "",
    cut: bool = False,
    module: torch.nn.Module | None = None,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Write an archive of ours of a small classifier.

    Args:
        target: the file.
        name: model name.
        version: model version.
        own: with a handler that is not derived from ours.
        needs: a package with its version: a worker refuses to load where it is not installed.
        cut: with half of the weights, as if the disk had been full after the export; its digests hold.
        module: another model than that of the colours.
        more: further members; ``writing_handler.py`` among them is the handler.
    """
    more = more or {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = classifier_folder(Path(temporary) / "model")
        if module is not None:
            write_model(folder, module)
        settings = json.loads((folder / "model-config.yaml").read_text())["handler"] | {"warm_up_s": 0.1}
        settings |= {"environment": "strict"} if needs else {}
        weights = (folder / "model.pt").read_bytes()
        entry = REPOSITORY / "handlers" / SHIPPED
        files = (entry, *local_imports(entry))
        ours = [Member(file.relative_to(entry.parent).as_posix(), file) for file in files]
        code = [Member("own_handler.py", OWN)] if own else ours
        members = [
            Member("model.pt", weights[: len(weights) // 2] if cut else weights),
            Member("index_to_name.json", folder / "index_to_name.json"),
            Member("model-config.yaml", json.dumps({**_CONFIG, "handler": settings}).encode()),
            Member("MAR-INF/environment.txt", f"python=={platform.python_version()}\n{needs}\n".encode()),
            *code,
            *(Member(member, content) for member, content in more.items()),
        ]
        handler = "writing_handler.py" if "writing_handler.py" in more else "own_handler.py" if own else SHIPPED
        manifest = Manifest(name, version, handler, serialized_file="model.pt", config_file="model-config.yaml")
        write_archive(manifest, members, target)
    return target


def entries_of(path: Path) -> dict[str, bytes]:
    """Return the members' contents, in their order."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, entries: dict[str, bytes]) -> None:
    """Write an archive as marsmith lays it out, with any contents."""
    path.write_bytes(raw_zip([Entry(name, content) for name, content in entries.items()]))


def change_weights(path: Path, _marker: Path) -> None:
    """Change one byte in the middle of the weights, and the CRC with it."""
    entries = entries_of(path)
    weights = bytearray(entries["model.pt"])
    weights[len(weights) // 2] ^= 1
    rewrite(path, {**entries, "model.pt": bytes(weights)})


def plant_bytecode(path: Path, marker: Path) -> None:
    """Add bytecode that Python runs instead of the handler's proved source, and which then says so in ``marker``."""
    entries = entries_of(path)
    handler = json.loads(entries["MAR-INF/MANIFEST.json"])["model"]["handler"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / handler
        source.write_text(f"{entries[handler].decode()}\nopen({str(marker)!r}, 'a').write('it ran')\n")
        compiled = Path(folder) / "planted.pyc"
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(compiled), handler, doraise=True, invalidation_mode=unchecked)
        rewrite(path, {**entries, cache_from_source(handler): compiled.read_bytes()})


def add_module(path: Path, _marker: Path) -> None:
    """Add a module."""
    rewrite(path, {**entries_of(path), "surprise.py": b""})


def remove_sums(path: Path, _marker: Path) -> None:
    """Remove the list of digests."""
    entries = entries_of(path)
    del entries["MAR-INF/SHA256SUMS"]
    rewrite(path, entries)


def remove_key(path: Path, _marker: Path) -> None:
    """Remove marsmith's key from the manifest."""
    entries = entries_of(path)
    manifest = json.loads(entries["MAR-INF/MANIFEST.json"])
    del manifest["marsmith"]
    rewrite(path, {**entries, "MAR-INF/MANIFEST.json": json.dumps(manifest).encode()})


def remove_key_and_sums(path: Path, marker: Path) -> None:
    """Remove both, as if another tool had made it; what only marsmith writes is still there."""
    remove_key(path, marker)
    remove_sums(path, marker)


def become_foreign(path: Path, _marker: Path) -> None:
    """Make it an archive of torch-model-archiver's: nothing in it is ours but the files."""
    remove_key(path, path)
    entries = entries_of(path)
    own = {"MAR-INF/SHA256SUMS", "MAR-INF/environment.txt"}
    rewrite(path, {name: content for name, content in entries.items() if name not in own})


# How an archive is tampered with, and what of it is named.
TAMPERED: dict[str, tuple[Tamper, str]] = {
    "weights": (change_weights, "model.pt"),
    "bytecode": (plant_bytecode, "__pycache__/"),
    "module": (add_module, "surprise.py"),
    "sums": (remove_sums, "MAR-INF/SHA256SUMS is missing"),
    "key": (remove_key, "lacks the key 'marsmith'"),
    "key and sums": (remove_key_and_sums, "MAR-INF/environment.txt is there"),
}
