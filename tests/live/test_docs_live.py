"""The blocks of the documentation, run in the order of each page, in a project with a server.

What a page needs beyond a clone of this repository is made by the block of the index, docs/README.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from marsmith import run_state
from marsmith.config.properties import ENCODING, as_mapping, parse_properties, render_properties
from marsmith.errors import NotRunningError
from marsmith.project import Project
from marsmith.server import lifecycle
from support.documentation import Block, Page, matches, pages
from support.live_server import free_addresses
from support.long_tests import mostly_long
from support.projects import REPOSITORY

INDEX = REPOSITORY / "docs" / "README.md"
# The addresses that the pages name, and the keys of the server config under which the tests have others.
ADDRESSES = {
    "127.0.0.1:8080": "inference_address",
    "127.0.0.1:8081": "management_address",
    "127.0.0.1:8082": "metrics_address",
    "127.0.0.1:7070": "grpc_inference_port",
}


def runnable(page: Page) -> list[Block]:
    """Return the blocks that a page wants written, run, or compared."""
    return [
        block
        for block in page.blocks
        if block.is_output or (block.not_run is None and (block.file or block.language in {"bash", "python"}))
    ]


RUNNABLE = [page for page in pages() if runnable(page) and page.path != INDEX]
# What a new user reads first; `make test-long` runs the other pages.
FIRST = [page for page in RUNNABLE if page.path.stem == "first-model"]


@pytest.fixture(scope="module")
def project(built_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A clone with the default model's export and archive built, on free ports, and what the index makes."""
    root = tmp_path_factory.mktemp("docs") / "project"
    shutil.copytree(built_project.root, root, symlinks=True)
    (root / ".venv").symlink_to(sys.prefix)
    config = root / "config.properties"
    values = as_mapping(parse_properties(config.read_text(encoding=ENCODING))) | free_addresses()
    config.write_text(render_properties(values), encoding=ENCODING)
    project = Project(root.resolve())
    try:
        run_page(project, next(page for page in pages() if page.path == INDEX))
        yield project
    finally:
        lifecycle.stop(project, timeout_s=0)


def run_page(project: Project, page: Page) -> None:
    """Write and run the blocks of one page in its order, and compare what they print with what the page shows."""
    printed = ""
    for block in runnable(page):
        if block.is_output:
            assert matches(block.text, printed), f"{block}\n{block.text}\nbut it prints\n{printed}"
        elif block.file is not None:
            (project.root / block.file).parent.mkdir(parents=True, exist_ok=True)
            (project.root / block.file).write_text(block.text, encoding="utf-8")
        else:
            printed = as_on_the_page(project, run_block(project, block))


def run_block(project: Project, block: Block) -> str:
    """Run one block in the project's root, as a script of its own; return what it prints."""
    text = with_ports(project, block.text)
    command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    environment = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    environment.pop("MARSMITH_PROJECT", None)
    done = subprocess.run(
        command,
        cwd=project.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout[-8000:]}"
    return done.stdout


def as_on_the_page(project: Project, printed: str) -> str:
    """Return what was printed with the addresses and the folder of the pages."""
    values = as_mapping(parse_properties((project.root / "config.properties").read_text(encoding=ENCODING)))
    for address, key in ADDRESSES.items():
        printed = printed.replace(f"127.0.0.1:{values[key].rpartition(':')[2]}", address)
    return printed.replace(str(project.root), "/home/me/project")


def with_ports(project: Project, text: str) -> str:
    """Return a block with the addresses of the test's server instead of the usual ones."""
    values = as_mapping(parse_properties((project.root / "config.properties").read_text(encoding=ENCODING)))
    for address, key in ADDRESSES.items():
        text = text.replace(address, f"127.0.0.1:{values[key].rpartition(':')[2]}")
    return text


@pytest.mark.parametrize("page", mostly_long("requests", RUNNABLE, FIRST, {page: str(page) for page in RUNNABLE}))
def test_the_blocks_of_a_page_run_as_they_are_written(project: Project, page: Page) -> None:
    serve(project)
    run_page(project, page)


def serve(project: Project) -> None:
    """Start the server unless it runs: a page may have stopped it."""
    try:
        run_state.read(project)
    except NotRunningError:
        lifecycle.start(project)
