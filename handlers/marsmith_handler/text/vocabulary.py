"""Vocabularies: the number of each token, from files of tokenizers and of TorchServe's text handlers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch


def read_vocabulary(file: Path) -> Mapping[str, int]:
    """Read the number of each token.

    Args:
        file: ``.txt`` with one token a line, numbered from 0; ``.json`` or ``.pt`` (saved by torch) with a mapping.

    Raises:
        RuntimeError: the file does not exist, or has other content.
    """
    if not file.is_file():
        raise RuntimeError(f"the archive has no {file.name}: name the vocabulary among its extra files")
    try:
        if file.suffix == ".txt":
            return {token: number for number, token in enumerate(file.read_text(encoding="utf-8").split("\n"))}
        if file.suffix == ".json":
            vocabulary = json.loads(file.read_text(encoding="utf-8"))
        else:
            vocabulary = torch.load(file, weights_only=True)
    # A .pt file with an object of a class raises UnpicklingError, which has no common base class with the others.
    except Exception as error:
        raise RuntimeError(f"{file.name} holds no mapping from token to number: {_advice(file, error)}") from None
    if not isinstance(vocabulary, Mapping) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise RuntimeError(f"{file.name} holds no mapping from token to number")
    return vocabulary


def _advice(file: Path, error: Exception) -> str:
    if file.suffix == ".pt":
        return "a pickled Vocab of torchtext is not loaded; write its get_stoi() as JSON, and name that file"
    return str(error)
