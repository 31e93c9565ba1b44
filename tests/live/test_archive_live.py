"""TorchServe loads every format that marsmith writes, as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from marsmith.archive import Archive, Member
from marsmith.archive.copier import Copier
from marsmith.archive.manifest import FILE_NAME as MANIFEST_FILE
from marsmith.archive.manifest import Manifest, render_manifest
from marsmith.archive.write import SUFFIXES, write_archive
from marsmith.archive.zip_writer import ZipWriter
from marsmith.client import Client
from marsmith.run_state import RunState
from support.archive_inputs import HANDLER, WEIGHTS
from support.live_server import make_project, running

CONFIG = b"minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\nmaxBatchDelay: 1\nresponseTimeout: 20\nstartupTimeout: 240\n"
# It answers with what it finds in its folder, so that a member lost or changed on the way shows.
ANSWERS = b"""
import hashlib
from pathlib import Path

def handle(data, context):
    folder = Path(context.system_properties["model_dir"])
    names = ("model.pt", "deep/text.txt", "empty.txt")
    return [{name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names} for _ in data or []]
"""


def write(store: Path, name: str, archive_format: str) -> None:
    manifest = Manifest(
        model_name=name,
        model_version="1.0",
        handler="toy_handler.py",
        serialized_file="model.pt",
        config_file="model-config.yaml",
    )
    contents = {"toy_handler.py": ANSWERS, "model-config.yaml": CONFIG, "model.pt": WEIGHTS}
    contents |= {"deep/text.txt": HANDLER * 100, "empty.txt": b""}
    members = [Member(member, content) for member, content in contents.items()]
    target = store / f"{name}{SUFFIXES[archive_format]}"  # type: ignore[index]
    write_archive(manifest, members, target, archive_format=archive_format)  # type: ignore[arg-type]


def mark_as_zip64(path: Path) -> None:
    """Write an archive again as another tool would, as if its members were above 4 GiB."""
    archive = Archive.open(path)
    foreign = replace(archive.manifest, marsmith=None)
    contents = {name: archive.read(name) for name in archive.members if not name.startswith("MAR-INF/")}
    contents = {MANIFEST_FILE: render_manifest(foreign).encode(), **contents}
    with path.open("w+b") as file, Copier() as copier:
        writer = ZipWriter(file, copier, zip64_from=300)
        for name, content in contents.items():
            writer.add(name, BytesIO(content), len(content))
        writer.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunState]:
    project = make_project(tmp_path_factory.mktemp("formats") / "project")
    for archive_format in SUFFIXES:
        write(project.model_store, f"toy-{archive_format}", archive_format)
    write(project.model_store, "toy-zip64", "zip-store")
    mark_as_zip64(project.model_store / "toy-zip64.mar")
    # What a killed build leaves must not be loaded.
    (project.model_store / f".half.mar.{'0' * 16}.tmp").write_bytes(b"PK")
    (project.model_store / f".half.{'0' * 16}.tmp").mkdir()
    with running(project) as state:
        yield state


@pytest.mark.parametrize("name", [*(f"toy-{archive_format}" for archive_format in SUFFIXES), "toy-zip64"])
def test_torchserve_serves_each_format_with_every_byte_in_place(server: RunState, name: str) -> None:
    with Client(server.inference, server.management, key_file=server.key_file if server.tokens else None) as client:
        reply = client.predict(name, b"x")
    assert reply.status == 200
    contents = {"model.pt": WEIGHTS, "deep/text.txt": HANDLER * 100, "empty.txt": b""}
    assert reply.json() == {member: hashlib.sha256(content).hexdigest() for member, content in contents.items()}


def test_only_finished_archives_are_registered(server: RunState) -> None:
    with Client(server.inference, server.management, key_file=server.key_file if server.tokens else None) as client:
        names = {model.name for model in client.models()}
    assert names == {*(f"toy-{archive_format}" for archive_format in SUFFIXES), "toy-zip64"}
