from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from marsmith.archive import Archive, Manifest, Member, write_archive
from marsmith.errors import ArchiveError, BuildError, ExportError, MarsmithError, UsageError
from marsmith.export.images import find_images
from marsmith.export.recipes.checkpoint import read_checkpoint
from marsmith.export.recipes.torchscript import load_module
from marsmith.inputs import read_input
from marsmith.stand_ins import pointer, stand_in

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 1234\n"
)
STATE = torch.nn.Linear(2, 3).state_dict()


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return buffer.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros(3))
    return buffer.getvalue()


OTHERS = {
    "pointer": (POINTER, "is a git-lfs pointer", "git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s12--ab.pth\n", "is a git-annex pointer", "git annex get"),
    "empty": (b"", "is empty", "copy or download it again"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a page of HTML", "download it again"),
    "denied": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "is a page of XML",
        "download it again",
    ),
    "json": (b'{"error": "Repository not found"}', "is text", "torch.save"),
    "gzip": (gzip.compress(saved(STATE)), "is a gzip archive", "unpack it first"),
    "tar": (tarred("w.pth", saved(STATE)), "is a tar archive", "tar xf"),
    "zip": (zipped(w_pth=saved(STATE)), "is a zip archive with w.pth in it", "unzip"),
    "other zip": (zipped(notes_txt=b"x"), "is a zip archive", "torch.save"),
    "mar": (zipped(**{"MAR-INF__MANIFEST_json": b"{}"}), "is a model archive", "unzip"),
    "npz": (npz(), "is a file of NumPy arrays", "torch.save"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(600), "is an HDF5 file", "convert"),
    "pickle": (pickle.dumps({"weight": [1.0]}), "is a pickle that torch.save did not write", "torch.save"),
    "cut off": (saved(torch.nn.Linear(50, 50).state_dict())[:-500], "is truncated", "again"),
    "noise": (bytes(range(128, 256)), "is something else", "torch.save"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_of_weights_is_called_what_it_is(kind: str, suffix: str, tmp_path: Path) -> None:
    content, what, tip = OTHERS[kind]
    (tmp_path / f"w{suffix}").write_bytes(content)
    for trusted in (False, True):
        with pytest.raises(ExportError) as caught:
            read_checkpoint(tmp_path / f"w{suffix}", allow_pickle=trusted)
        if suffix == ".safetensors" and kind in ("json", "noise"):
            assert "is not a complete .safetensors file" in caught.value.message
            continue
        assert what in caught.value.message
        assert tip in str(caught.value.tip)
        assert "--unsafe-weights" not in str(caught.value.tip)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "pytorch_model.bin", "last.ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_read_by_what_they_are_and_not_by_their_suffix(name: str, legacy: bool, tmp_path: Path) -> None:
    contents = [saved(STATE, _use_new_zipfile_serialization=not legacy), save(STATE)]
    for content in contents:
        (tmp_path / name).write_bytes(content)
        assert torch.equal(read_checkpoint(tmp_path / name).state["weight"], STATE["weight"])


def test_only_a_pickle_that_needs_it_is_offered_to_be_trusted_and_its_class_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(saved(torch.nn.Linear(2, 3)))
    with pytest.raises(ExportError, match=r"more than tensors \(torch\.nn\.modules\.linear\.Linear\)") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert "--unsafe-weights" in str(caught.value.tip)


def test_a_pointer_is_named_wherever_a_binary_file_is_read(tmp_path: Path) -> None:
    for name in ("old.pt", "model.mar", "cat.jpg"):
        (tmp_path / name).write_bytes(POINTER)
    readers: list[tuple[Any, type[MarsmithError]]] = [
        (lambda: load_module(tmp_path / "old.pt"), ExportError),
        (lambda: Archive.open(tmp_path / "model.mar"), ArchiveError),
        (lambda: read_input("cat.jpg", tmp_path), UsageError),
        (lambda: find_images(["*.jpg"], tmp_path), UsageError),
        (lambda: find_images(["."], tmp_path), UsageError),
    ]
    for read, kind in readers:
        with pytest.raises(kind, match="is a git-lfs pointer") as caught:
            read()
        assert "git lfs pull" in str(caught.value.tip)


def test_no_archive_is_made_of_pointers(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.bin").write_bytes(POINTER)
    manifest = Manifest(model_name="m", model_version="1.0", handler="base_handler")
    members = [Member("vocabulary.bin", tmp_path / "vocabulary.bin")]
    with pytest.raises(BuildError, match=r"vocabulary\.bin is a git-lfs pointer, not the file itself: .*git lfs pull"):
        write_archive(manifest, members, tmp_path / "m.mar")
    assert not (tmp_path / "m.mar").exists()


@given(st.binary(max_size=2000).filter(lambda content: not content.startswith((b"version https://", b"/annex/"))))
def test_nothing_else_is_taken_for_a_pointer(content: bytes) -> None:
    assert pointer(content) is None


def test_a_text_that_begins_like_a_pointer_and_is_longer_is_none(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_bytes(POINTER + b"is how a pointer begins.\n" * 100)
    assert stand_in(tmp_path / "page.md") is None
    assert read_input("page.md", tmp_path).name == "page.md"


def test_a_file_that_cannot_be_read_is_no_stand_in(tmp_path: Path) -> None:
    assert stand_in(tmp_path / "missing") is None
    assert stand_in(tmp_path) is None
    save_file(STATE, tmp_path / "w.safetensors")
    assert stand_in(tmp_path / "w.safetensors") is None
