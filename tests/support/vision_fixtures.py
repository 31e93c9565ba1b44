"""Pictures with something in them, and networks with random weights that answer differently to different pictures."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image


def photo(seed: int, size: tuple[int, int], kind: str = "PNG", **options: Any) -> bytes:
    """A picture of soft blots of colour, encoded; ``size`` is width and height."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()


def wake(network: torch.nn.Module) -> None:
    """Give a network's batch norms the statistics of a few pictures; fresh ones let every signal fade to nothing."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    bodies = [photo(seed, (160, 160)) for seed in range(4)]
    pictures = np.stack([np.array(Image.open(BytesIO(body))) for body in bodies])
    with torch.no_grad():
        network.train()(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1)
    network.eval()
