"""Which distribution brings a module that is not installed: told only where it is known, never guessed.

Anybody can publish a package under the name of somebody's own module, and ``pip install`` runs what is in it.
"""

from __future__ import annotations

from pathlib import Path

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
# Where no source of a project lies.
_NOT_SOURCE = frozenset({"build", "dist", "model_store", "node_modules", "site-packages", "__pycache__", "venv"})
# How far upwards a file that lies in no project is looked around.
_LEVELS = 3


def install_tip(module: str) -> str:
    """Return how to get a module that is not installed."""
    if module in _SAME_NAMED.split() or module in _OTHERWISE_NAMED:
        return f"pip install {_OTHERWISE_NAMED.get(module, module)}"
    return f"install the package that brings {module!r}; which one that is cannot be told from the name"


def lies_in_project(module: str, near: Path) -> Path | None:
    """Return the file or folder of a project that a module's name may mean; None where there is none.

    Looked at are the folders above ``near``, up to the project's root, and those directly in each of them.

    Args:
        module: its top-level name.
        near: a file that imports it.
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
    # Not the whole machine: a folder of everybody's may hold anything.
    return [folder for folder in folders[:levels] if len(folder.parts) > 2]


def _is_root(folder: Path) -> bool:
    return (folder / "config" / "models").is_dir() or (folder / ".git").exists()


def _source_folders(folder: Path) -> list[Path]:
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    return [path for path in inside if path.name not in _NOT_SOURCE and not path.name.startswith(".")]
