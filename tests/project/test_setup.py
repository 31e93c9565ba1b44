"""`make setup` installs what the lock lists and nothing else, also from an index that has moved on."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from support.long_tests import long, mostly_long
from support.projects import REPOSITORY
from support.pythons import pythons

PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = """
import base64, hashlib, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "marsmith-0-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.writestr("marsmith.pth", "")
        wheel.writestr("marsmith-0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: marsmith\\nVersion: 0\\n")
        wheel.writestr("marsmith-0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("marsmith-0.dist-info/RECORD", "marsmith.pth,,\\n")
    return name
"""


class Index:
    """A package index on this machine: wheels in ``root``, and a gate that holds a download back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.held: str | None = None
        self.asked = threading.Event()
        self.released = threading.Event()
        self.url = ""

    def add(self, name: str, version: str, *metadata: str) -> str:
        """Add an empty wheel and return the line of a lock that pins it."""
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": "",
            f"{info}/METADATA": "\n".join(
                ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""]
            ),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
        file = self._file(name, f"{name}-{version}-py3-none-any.whl")
        with zipfile.ZipFile(file, "w") as wheel:
            for path, text in (files | {f"{info}/RECORD": record}).items():
                wheel.writestr(path, text)
        return _pin(name, version, file)

    def add_installed(self, name: str) -> str:
        """Add the wheel of a package that this Python has, and return the line of a lock that pins it."""
        found = distribution(name)
        site = Path(str(found.locate_file("")))
        tag = next(line.split(": ")[1] for line in str(found.read_text("WHEEL")).splitlines() if line.startswith("Tag"))
        file = self._file(name, f"{name}-{found.version}-{tag}.whl")
        data = f"{name}-{found.version}.data/scripts"
        left_out = ("INSTALLER", "REQUESTED", "direct_url.json", ".pyc")
        with zipfile.ZipFile(file, "w") as wheel:
            for path in found.files or ():
                if not str(path).endswith(left_out):
                    inside = f"{data}/{path.name}" if ".." in path.parts else str(path)
                    wheel.write(site / path, inside)
        return _pin(name, found.version, file)

    def _file(self, name: str, file: str) -> Path:
        folder = self.root / "simple" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / file


class _Requests(SimpleHTTPRequestHandler):
    def __init__(self, index: Index, *arguments: Any) -> None:
        self.index = index
        super().__init__(*arguments, directory=str(index.root))

    def do_GET(self) -> None:
        if self.index.held and self.path.rpartition("/")[2].startswith(self.index.held):
            self.index.asked.set()
            self.index.released.wait(60)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests' output is theirs."""


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def _pin(name: str, version: str, file: Path) -> str:
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path / "index")
    index.root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Requests, index))
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield index
    index.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make setup` reads of a clone, with a package of its own that needs nothing."""
    root = tmp_path / "a clone"
    (root / "tools").mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", root)
    for tool in ("venv.sh", "flow.mk"):
        shutil.copy(REPOSITORY / "tools" / tool, root / "tools")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    return root


def make_setup(clone: Path, index: Index, python: str = sys.executable) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "MAKE"))}
    settings = {"PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": os.devnull, "UV_NO_CACHE": "1"}
    return subprocess.Popen(
        ["make", "setup", f"PYTHON={python}"],
        cwd=clone,
        env=kept | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def installed(clone: Path) -> dict[str, str]:
    listed = subprocess.run(
        [clone / ".venv/bin/python", "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("==") for line in listed.stdout.splitlines() if "==" in line)


def locked(index: Index) -> str:
    """A lock that was right once: now the index has a newer version of a package that is named with an extra."""
    lines = index.add("lib", "1.0", "Provides-Extra: extra")
    index.add("lib", "2.0", "Provides-Extra: extra")
    return lines + index.add("app", "1.0", "Requires-Dist: lib[extra]<3,>=1")


@pytest.mark.parametrize("python", mostly_long("setup", pythons(), pythons()[-1:]))
def test_the_locked_versions_are_installed_though_the_index_has_newer_ones(
    clone: Path, index: Index, python: str
) -> None:
    (clone / "requirements.txt").write_text(locked(index) + index.add_installed("uv"))
    make = make_setup(clone, index, python)
    output = make.communicate(timeout=300)[0]
    assert make.returncode == 0, output
    assert {"lib": "1.0", "app": "1.0", "marsmith": "0"}.items() <= installed(clone).items()
    assert (clone / ".venv/.installed").exists()


@long("setup")
def test_pip_installs_a_lock_that_does_not_name_uv(clone: Path, index: Index) -> None:
    (clone / "requirements.txt").write_text(locked(index))
    make = make_setup(clone, index)
    output = make.communicate(timeout=300)[0]
    assert make.returncode == 0, output
    assert installed(clone)["lib"] == "1.0"


def test_a_set_up_that_does_not_hold_together_leaves_no_stamp(clone: Path, index: Index) -> None:
    lines = index.add("lib", "1.0") + index.add("app", "1.0", "Requires-Dist: lib>=2")
    (clone / "requirements.txt").write_text(lines + index.add_installed("uv"))
    make = make_setup(clone, index)
    output = make.communicate(timeout=300)[0]
    assert make.returncode != 0
    assert "app 1.0 has requirement lib>=2, but you have lib 1.0" in output
    assert not (clone / ".venv/.installed").exists()


@long("setup")
def test_a_set_up_that_was_killed_goes_on(clone: Path, index: Index) -> None:
    (clone / "requirements.txt").write_text(locked(index) + index.add_installed("uv"))
    index.held = "lib-1.0"
    killed = make_setup(clone, index)
    assert index.asked.wait(120)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (clone / ".venv/.installed").exists()
    index.released.set()
    make = make_setup(clone, index)
    output = make.communicate(timeout=300)[0]
    assert make.returncode == 0, output
    assert installed(clone)["lib"] == "1.0"
