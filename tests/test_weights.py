from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from marsmith.errors import ExportError
from marsmith.recipe import ImagePreprocessing, Recipe
from marsmith.weights import apply_weights, load_weights


def _recipe(**options: Any) -> Recipe:
    return Recipe(build=lambda: torch.nn.Linear(2, 3), preprocessing=ImagePreprocessing(), labels=list, **options)


class Payload:
    """What a hostile pickle looks like: loading it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("kind", ["pth", "nested", "safetensors"])
def test_a_state_dict_is_read_whatever_it_is_kept_in(kind: str, tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    weights = load_weights(path.name, _recipe(), tmp_path)
    module = torch.nn.Linear(2, 3)
    apply_weights(module, weights)
    assert torch.equal(module.weight, state["weight"])
    assert weights.record["source"] == "file"
    assert len(weights.record["sha256"]) == 64


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "ran"), tmp_path / "w.pth")
    with pytest.raises(ExportError, match="could run code"):
        load_weights("w.pth", _recipe(), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_weights_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state = torch.nn.Linear(50, 50).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ExportError, match=r"truncated|not a whole"):
        load_weights(path.name, _recipe(), tmp_path)


@pytest.mark.parametrize("source", ["recipe", "hub", "missing.pth"])
def test_weights_that_are_not_there_are_named_with_the_way_out(source: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        load_weights(source, _recipe(), tmp_path)
    assert "--weights random" in str(caught.value.tip)


def test_a_hub_out_of_reach_says_so(tmp_path: Path) -> None:
    def unreachable() -> Any:
        raise OSError("no route")

    with pytest.raises(ExportError, match=r"could not be reached: no route"):
        load_weights("hub", _recipe(hub_weights=unreachable), tmp_path)


def test_keys_that_do_not_fit_are_listed_with_the_nearest_ones(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 4).state_dict()
    torch.save({"weight": state["weight"], "biass": state["bias"]}, tmp_path / "w.pth")
    weights = load_weights("w.pth", _recipe(), tmp_path)
    with pytest.raises(ExportError) as caught:
        apply_weights(torch.nn.Linear(2, 3), weights)
    assert "missing 'bias' (the file has 'biass')" in caught.value.message
    assert "'weight' has shape (4, 2), not (3, 2)" in caught.value.message


def test_random_weights_are_recorded_as_such(tmp_path: Path) -> None:
    assert load_weights("random", _recipe(), tmp_path).record == {"source": "random", "seed": 0}
