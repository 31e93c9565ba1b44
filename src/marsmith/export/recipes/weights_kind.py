"""Detect the kind of a file of weights by its content, not by its name."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from marsmith.errors import ExportError
from marsmith.stand_ins import stand_in

Kind = Literal["safetensors", "torch", "torchscript", "exported program"]

_TORCH_TIP = "save a state dict: torch.save(module.state_dict(), path), or use .safetensors"
# Other kinds of files that occur under such names, by their first bytes.
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", "unpack it first: gunzip, or tar xf"),
    (b"BZh", "a bzip2 archive", "unpack it first: bunzip2, or tar xf"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it first: xz -d, or tar xf"),
    (b"(\xb5/\xfd", "a zstd archive", "unpack it first: zstd -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "convert it to PyTorch first"),
    (b"\x93NUMPY", "a NumPy array", _TORCH_TIP),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle that torch.save did not write", _TORCH_TIP),
    (b"GGUF", "a GGUF file", "take the model's .safetensors or .pth file"),
)
_TAR_AT = 257
# The number at the start of torch.save's older format, as pickled.
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
_WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def weights_kind(path: Path) -> Kind:
    """Return the kind of a file of weights.

    Raises:
        ExportError: the file contains no weights; the message says what it is.
    """
    instead = stand_in(path)
    if instead:
        raise ExportError(f"{path} {instead.what}, not a torch.save file or .safetensors", tip=instead.tip)
    with path.open("rb") as file:
        head = file.read(_TAR_AT + 8)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors"
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if _TORCH_MAGIC in head[:64]:
        return "torch"
    raise _other(path, head)


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as records:
            names = records.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ExportError(f"{path} is truncated: {error}", tip="copy or download it again") from error
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    if path.suffix == ".pt2":
        return "exported program"
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    raise _other_zip(path, names)


def _other_zip(path: Path, names: Sequence[str]) -> ExportError:
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    if "MAR-INF/MANIFEST.json" in names:
        return _not_weights(path, "a model archive", f"take the weights out of it first: unzip {path.name}")
    if weights:
        return _not_weights(path, f"a zip archive with {weights[0]} in it", f"unpack it first: unzip {path.name}")
    if names and all(name.endswith(".npy") for name in names):
        return _not_weights(path, "a file of NumPy arrays", _TORCH_TIP)
    return _not_weights(path, "a zip archive", _TORCH_TIP)


def _other(path: Path, head: bytes) -> ExportError:
    for magic, what, tip in _MAGIC:
        if head.startswith(magic):
            return _not_weights(path, what, tip)
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return _not_weights(path, "a tar archive", f"unpack it first: tar xf {path.name}")
    if path.suffix == ".safetensors":
        return ExportError(f"{path} is not a complete .safetensors file", tip="copy or download it again")
    return _not_weights(path, "text" if head.isascii() and b"\0" not in head else "something else", _TORCH_TIP)


def _not_weights(path: Path, what: str, tip: str) -> ExportError:
    return ExportError(f"{path} is {what}, not a torch.save file or .safetensors", tip=tip)
