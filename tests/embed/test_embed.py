"""The program in embed/: the same answers as the Python runner, and no archive that can hurt it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marsmith.runtime.runner import Request, Runner
from support.projects import REPOSITORY, skip_without_locked_torch

PHOTOS = Path(torch.__file__).parents[1] / "skimage" / "data"
SOURCES = [*sorted((REPOSITORY / "embed").glob("*.[ch]pp")), REPOSITORY / "embed" / "CMakeLists.txt"]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="this machine has no C++ compiler")

# Opens each archive, reads every member and parses those that are JSON; one line a file. Built with sanitizers.
PROBE = """\
#include "archive.hpp"
#include "json.hpp"
#include <cstdio>
int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    try {
      marsmith::Archive archive(argv[i]);
      for (const auto& name : archive.names()) {
        const auto content = archive.member(name);
        if (name.size() > 5 && name.substr(name.size() - 5) == ".json") marsmith::parse_json(content);
      }
      std::printf("read %zu\\n", archive.names().size());
    } catch (const std::runtime_error& error) {
      std::printf("refused %s\\n", error.what());
    }
  }
}
"""


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def cmake() -> str:
    own = Path(sys.executable).with_name("cmake")
    found = str(own) if own.exists() else shutil.which("cmake")
    assert found, "cmake is missing: it comes with the extra dev"
    return found


@pytest.fixture(scope="module")
def program() -> Path:
    """The program, built once for these sources and this torch."""
    skip_without_locked_torch("embed")
    digest = hashlib.sha256(torch.__version__.encode() + b"".join(path.read_bytes() for path in SOURCES)).hexdigest()
    folder = REPOSITORY / ".marsmith" / "embed"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / digest[:16] / "marsmith-embed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            for old in folder.iterdir():
                shutil.rmtree(old) if old.is_dir() else None
            root = Path(torch.__file__).parent
            # As one file: reading the headers of libtorch takes longer than all the rest.
            options = [f"-DTORCH_ROOT={root}", "-DCMAKE_UNITY_BUILD=ON"]
            run(cmake(), "-S", REPOSITORY / "embed", "-B", program.parent, *options)
            run(cmake(), "--build", program.parent, "--parallel", "2")
    return program


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader of archives alone, which needs no torch, with address and undefined-behaviour sanitizers."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cpp").write_text(PROBE)
    embed = REPOSITORY / "embed"
    sources = [folder / "probe.cpp", embed / "archive.cpp", embed / "json.cpp"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    run(str(COMPILER), "-std=c++20", "-O0", *sanitizers, f"-I{embed}", *sources, "-o", folder / "probe")
    return folder / "probe"


def pictures(folder: Path) -> list[Path]:
    """A PNG, a JPEG, gray, gray of 16 bits, with alpha, with a palette, turned by EXIF, smaller than the crop."""
    cat = Image.open(PHOTOS / "chelsea.png").convert("RGB")
    wedge = Image.fromarray(np.linspace(0, 65535, 300 * 400).reshape(300, 400).astype(np.uint16))
    alpha = cat.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(cat.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    wedge.save(folder / "wedge.png")
    alpha.save(folder / "alpha.png")
    cat.quantize(32).save(folder / "palette.png")
    cat.save(folder / "turned.jpg", exif=turned)
    cat.resize((90, 50)).save(folder / "small.jpg")
    return [PHOTOS / "chelsea.png", PHOTOS / "rocket.jpg", PHOTOS / "camera.png", *sorted(folder.iterdir())]


def run_by_torch(archive: Path, folder: Path) -> Path:
    """Unpack an archive and let torch run its serialized file, as the program does, whatever its own engine is."""
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    config = folder / "model-config.yaml"
    config.write_text(re.sub(r"(?m)^( *(?:engine|precision|engine_file): ).*\n", "", config.read_text()))
    # Digests and replies are those of the archive as it was, so this one is not ours.
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
    del manifest["marsmith"]
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "MAR-INF" / "SHA256SUMS").unlink()
    shutil.rmtree(folder / "MAR-INF" / "examples")
    return folder


def test_every_picture_gets_the_five_classes_that_the_python_runner_gives(
    program: Path, default_archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    files = pictures(tmp_path / "pictures")
    lines = run(program, default_archive, *files).splitlines()
    with Runner(run_by_torch(default_archive, tmp_path / "unpacked"), batch_size=1) as runner:
        replies = [runner.run([Request(file.read_bytes())])[0].json() for file in files]
    for file, line, wanted in zip(files, lines, replies, strict=True):
        given = json.loads(line)
        assert len(given) == 5, file
        assert next(iter(given)) == next(iter(wanted)), file
        for label in given.keys() | wanted.keys():
            # Two classes next to each other in rank may change places where their probabilities are as close as this.
            last = min(*given.values(), *wanted.values())
            assert given.get(label, last) == pytest.approx(wanted.get(label, last), abs=1e-3), (file, label)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"GIF89a", "neither JPEG nor PNG"),
        (b"\xff\xd8\xff\xe0 not really", "marsmith-embed: error:"),
        (None, "cannot be"),
    ],
)
def test_a_picture_that_is_none_is_an_error(
    image: bytes | None, message: str, program: Path, default_archive: Path, tmp_path: Path
) -> None:
    if image is not None:
        (tmp_path / "x").write_bytes(image)
    done = subprocess.run([program, default_archive, tmp_path / "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_an_archive_with_another_serialized_file_is_an_error(program: Path, tmp_path: Path) -> None:
    settings = {"resize": 8, "crop": [8, 8], "interpolation": "bilinear"}
    content = {
        "MAR-INF/export.json": json.dumps({"preprocessing": {"byTheHandler": settings}}),
        "MAR-INF/MANIFEST.json": '{"model": {"serializedFile": "model.onnx"}}',
        "model.onnx": "no TorchScript",
    }
    (tmp_path / "x.mar").write_bytes(archive_of(content))
    done = subprocess.run([program, tmp_path / "x.mar", "x.jpg"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "model.onnx is no TorchScript that this libtorch reads" in done.stderr


def archive_of(content: dict[str, str], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of always the same bytes: the clock's could be among those that a test looks for."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in content.items():
            archive.writestr(zipfile.ZipInfo(name), text, method)
    return stream.getvalue()


GOOD = {"a.json": '{"x": [1, -2.5e3, true, null, "\\u00e4\\ud83d\\ude00\\n"]}', "b": "content", "folder/": "", "c": ""}


def verdicts(probe: Path, folder: Path, *bodies: bytes) -> list[str]:
    files = []
    for number, body in enumerate(bodies):
        files.append(folder / f"{number}.mar")
        files[-1].write_bytes(body)
    return [line.replace(f"{folder}/", "") for line in run(probe, *files).splitlines()]


def test_stored_archives_are_read_also_with_zip64_records(probe: Path, default_archive: Path, tmp_path: Path) -> None:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, archive.open("large", "w", force_zip64=True) as member:
        member.write(b"x" * 10)
    many = archive_of({str(number): "x" for number in range(66_000)})
    assert verdicts(probe, tmp_path, archive_of(GOOD), stream.getvalue(), many) == ["read 3", "read 1", "read 66000"]
    assert run(probe, default_archive).startswith("read ")


def test_hostile_archives_are_refused(probe: Path, tmp_path: Path) -> None:
    good = archive_of(GOOD)
    damaged = good.replace(b"content", b"tnetnoc")
    renamed = good[: good.rindex(b"b")] + b"d" + good[good.rindex(b"b") + 1 :]
    place = good.index(b"PK\x01\x02")
    far = good[: place + 42] + struct.pack("<I", 2**31) + good[place + 46 :]
    long = good[: place + 20] + struct.pack("<II", 2**30, 2**30) + good[place + 28 :]
    packed = archive_of({"b": "content" * 99}, zipfile.ZIP_DEFLATED)
    two = archive_of({"b": "1", "d": "2"}).replace(b"d", b"b")
    deep = archive_of({"a.json": "[" * 100_000})
    broken = [
        archive_of({"a.json": text}) for text in ('{"a": 1', '"\\ud8"', "[1,]", "1 2", '{"a" 1}', "nul", "1e999", "")
    ]
    bodies = (damaged, renamed, far, long, packed, two, deep, good[:-1], good[10:], b"PK\x05\x06", *broken)
    found = verdicts(probe, tmp_path, *bodies)
    words = [
        "CRC-32",
        "disagree",
        "lies",
        "lies",
        "compressed",
        "two of its members",
        "nested too deeply",
        "",
        "",
        "too short",
    ]
    for verdict, wanted in zip(found, words + ["not JSON"] * len(broken), strict=True):
        assert verdict.startswith("refused ")
        assert wanted in verdict


def test_no_flipped_byte_reads_outside_of_the_file(probe: Path, tmp_path: Path) -> None:
    good, chance = archive_of(GOOD), random.Random(0)
    bodies = []
    for _ in range(400):
        body = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            body[chance.randrange(len(body))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        bodies.append(bytes(body[: chance.choice([len(body), chance.randrange(1, len(body))])]))
    found = verdicts(probe, tmp_path, *bodies)
    assert len(found) == len(bodies)
    assert any(line.startswith("refused") for line in found)


def test_members_of_every_length_pass_their_check(probe: Path, tmp_path: Path) -> None:
    content = {f"m{size}": "\u00e4x" * size for size in range(20)}
    assert verdicts(probe, tmp_path, archive_of(content)) == ["read 20"]
