"""Installed distributions: which one provides a module, its metadata, and tips for missing modules.

A tip names a distribution only if it is known. Any package on an index may have the name of a user's own module, and
``pip install`` runs its code.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution from its metadata; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Providers:
    """The distributions of this Python, by the top-level modules that they provide.

    Attributes:
        by_module: distributions that provide each top-level name or parts of it.
    """

    by_module: Mapping[str, tuple[metadata.Distribution, ...]]

    @classmethod
    def installed(cls) -> Providers:
        """Read the distributions of the Python that runs marsmith."""
        found: dict[str, dict[str, metadata.Distribution]] = defaultdict(dict)
        for distribution in metadata.distributions():
            for module in _top_level(distribution):
                # The first one on sys.path is imported.
                found[module].setdefault(distribution.metadata["Name"], distribution)
        return cls({module: tuple(owners.values()) for module, owners in found.items()})

    def of(self, dotted: str) -> list[str]:
        """Return the distributions that provide a module, by its dotted name; empty if there are none.

        If several share a top-level name, such as ``google``, those that match most of the dotted name are returned.
        """
        top = dotted.partition(".")[0]
        owners = self.by_module.get(top, ())
        if len(owners) > 1:
            depths = [_matching_parts(owner, dotted) for owner in owners]
            owners = tuple(owner for owner, depth in zip(owners, depths, strict=True) if depth == max(depths))
        return [owner.metadata["Name"] for owner in owners] or _editable_owner(top)


def _top_level(distribution: metadata.Distribution) -> set[str]:
    declared = distribution.read_text("top_level.txt")
    if declared:
        return set(declared.split())
    return {
        file.parts[0].partition(".")[0]
        for file in distribution.files or ()
        if file.suffix in {".py", ".so", ".pyd"} and ".." not in file.parts
    }


def _matching_parts(distribution: metadata.Distribution, dotted: str) -> int:
    """Return how many parts of a dotted name are files or folders of the distribution."""
    parts = tuple(dotted.split("."))
    best = 0
    for file in distribution.files or ():
        names = (*file.parts[:-1], file.name.partition(".")[0])
        same = next(
            (i for i, (a, b) in enumerate(zip(names, parts, strict=False)) if a != b), min(len(names), len(parts))
        )
        best = max(best, same)
    return best


def module_origin(name: str) -> str | None:
    """Return the origin of a top-level module, without loading it; None if it is not found."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _editable_owner(name: str) -> list[str]:
    """Return the distribution installed with ``pip install --editable`` whose folder contains the module."""
    origin = module_origin(name)
    if origin is None:
        return []
    for distribution in metadata.distributions():
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
        folder = Path(unquote(urlsplit(direct.get("url", "")).path))
        if direct.get("dir_info", {}).get("editable") and Path(origin).is_relative_to(folder):
            return [distribution.metadata["Name"]]
    return []


_OTHERWISE_NAMED = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "faiss": "faiss-cpu",
    "fitz": "pymupdf",
    "grpc": "grpcio",
    "jwt": "pyjwt",
    "open_clip": "open_clip_torch",
    "pytorch_lightning": "pytorch-lightning",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "sentence_transformers": "sentence-transformers",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "ts": "torchserve",
    "typing_extensions": "typing-extensions",
    "yaml": "pyyaml",
}
_SAME_NAMED = (
    "accelerate aiohttp albumentations boto3 cryptography datasets einops fastapi flask fsspec huggingface_hub "
    "imageio joblib jsonschema kornia librosa lightgbm lightning lxml matplotlib mlflow networkx nltk numba "
    "numpy nvgpu onnx onnxruntime onnxscript openvino packaging pandas peft polars prometheus_client psutil "
    "pyarrow pydantic regex requests safetensors scipy sentencepiece soundfile spacy statsmodels tensorboard "
    "tiktoken timm tokenizers torch torchaudio torchmetrics torchvision tqdm transformers ultralytics xgboost"
)
# Folders that contain no sources of a project.
_NOT_SOURCE = frozenset({"build", "dist", "model_store", "node_modules", "site-packages", "__pycache__", "venv"})
# Maximum number of parent folders to search for a file outside of a project.
_LEVELS = 3


def install_tip(module: str) -> str:
    """Return how to install a missing module."""
    if module in _SAME_NAMED.split() or module in _OTHERWISE_NAMED:
        return f"pip install {_OTHERWISE_NAMED.get(module, module)}"
    return f"install the package that provides {module!r}; its name may differ"


def lies_in_project(module: str, near: Path) -> Path | None:
    """Return the file or folder of a project that a module's name may refer to; None if there is none.

    The folders above ``near`` are searched, up to the project's root, and those directly in each of them.

    Args:
        module: top-level name of the module.
        near: file that imports it.
    """
    for folder in _upwards(near.absolute()):
        for place in (folder, *_source_folders(folder)):
            for found in (place / f"{module}.py", place / module):
                if found.is_file() or (found.is_dir() and any(found.rglob("*.py"))):
                    return found
    return None


def _upwards(near: Path) -> list[Path]:
    folders = list(near.parents)
    root = next((index for index, folder in enumerate(folders) if _is_root(folder)), None)
    levels = _LEVELS if root is None else root + 1
    # Not the whole machine: other users' folders may contain anything.
    return [folder for folder in folders[:levels] if len(folder.parts) > 2]


def _is_root(folder: Path) -> bool:
    return (folder / "config" / "models").is_dir() or (folder / ".git").exists()


def _source_folders(folder: Path) -> list[Path]:
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    return [path for path in inside if path.name not in _NOT_SOURCE and not path.name.startswith(".")]
