from __future__ import annotations

import copy
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from marsmith.config.source_names import RecipeSource
from marsmith.errors import ExportError
from marsmith.export import ImagePreprocessing, Recipe
from marsmith.export.recipes.source import open_recipe
from marsmith.export.recipes.state_dicts import prefix_of
from marsmith.export.recipes.weights import apply_weights, load_weights
from support.long_tests import mostly_long


class Versioned(nn.Module):
    """Renames what an older version called otherwise, as torch's own modules do."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") == 1:
            state[f"{prefix}new"] = state.pop(f"{prefix}old")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Counting(nn.Linear):
    """Keeps a state that is no tensor."""

    seen = 0

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


def network() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), old=Versioned()))


def recipe(build: Any = network) -> Recipe:
    return Recipe(build=build, preprocessing=ImagePreprocessing(), labels=["a"])


def old_state(module: nn.Module) -> Any:
    """Return what torch 0.4.0 would have saved: no counts of batches, and version 1."""
    state: Any = module.state_dict()
    del state["norm.num_batches_tracked"]
    state["old.old"] = state.pop("old.new")
    for name in ("norm", "old"):
        state._metadata[name] = {"version": 1}
    return state


def load(path: Path, module: nn.Module, **options: Any) -> dict[str, Any]:
    weights = load_weights(path.name, recipe(), path.parent, wanted=module.state_dict().keys(), **options)
    apply_weights(module, weights)
    return weights.record


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model."])
def test_what_torch_loads_strictly_is_loaded_versions_and_all(tmp_path: Path, prefix: str) -> None:
    made, module = network(), network()
    state = old_state(made)
    network().load_state_dict(state, strict=True)  # torch itself takes it
    wrapped = OrderedDict((prefix + name, value) for name, value in state.items())
    head = prefix.removesuffix(".")
    versions = {".".join(filter(None, (head, name))): version for name, version in state._metadata.items()}
    wrapped._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "old.pth")
    record = load(tmp_path / "old.pth", module, strip_prefix="model." if prefix == "model." else "")
    assert record.get("stripped", "") == prefix
    assert torch.equal(module.state_dict()["conv.weight"], made.state_dict()["conv.weight"])


def test_a_count_of_batches_that_only_the_version_excuses_is_missed_where_the_version_is_new(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["norm.num_batches_tracked"]
    torch.save(state, tmp_path / "new.pth")
    with pytest.raises(RuntimeError):
        network().load_state_dict(torch.load(tmp_path / "new.pth"))
    with pytest.raises(ExportError, match=r'Missing key\(s\) in state_dict: "norm.num_batches_tracked"'):
        load(tmp_path / "new.pth", network())


def test_safetensors_without_the_counts_are_loaded_as_torch_loads_them(tmp_path: Path) -> None:
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = {name: value for name, value in made.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    load(tmp_path / "w.safetensors", module)
    assert torch.equal(module.state_dict()["0.weight"], made.state_dict()["0.weight"])


def test_a_state_beside_the_tensors_is_part_of_a_state_dict(tmp_path: Path) -> None:
    made, module = Counting(2, 3), Counting(2, 3)
    made.seen = 7
    torch.save(made.state_dict(), tmp_path / "w.pth")
    load(tmp_path / "w.pth", module)
    assert module.seen == 7


def test_weight_norm_of_an_older_torch_is_loaded_as_torch_loads_it(tmp_path: Path) -> None:
    made = nn.Linear(2, 3)
    state = {"bias": made.bias, "weight_g": made.weight.norm(dim=1, keepdim=True), "weight_v": made.weight}
    torch.save({name: value.detach() for name, value in state.items()}, tmp_path / "w.pth")
    module = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    load(tmp_path / "w.pth", module)
    assert torch.allclose(module.weight, made.weight)


def test_a_module_that_has_a_wrappers_name_itself_keeps_it(tmp_path: Path) -> None:
    made = nn.Sequential(OrderedDict(module=nn.Linear(2, 3)))
    torch.save(made.state_dict(), tmp_path / "w.pth")
    module = copy.deepcopy(made)
    assert "stripped" not in load(tmp_path / "w.pth", module)
    torch.save(nn.DataParallel(made).state_dict(), tmp_path / "parallel.pth")
    assert load(tmp_path / "parallel.pth", module)["stripped"] == "module."


def test_a_prefix_that_all_names_have_is_offered_and_taken_off_when_asked(tmp_path: Path) -> None:
    made, module = network(), network()
    state = {f"model.{name}": value for name, value in made.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}, "global_step": 9}, tmp_path / "last.ckpt")
    with pytest.raises(ExportError, match="Missing key") as caught:
        load(tmp_path / "last.ckpt", module)
    assert "--strip-prefix model." in str(caught.value.tip)
    assert "export.strip_prefix" in str(caught.value.tip)
    record = load(tmp_path / "last.ckpt", module, strip_prefix="model.")
    assert (record["stripped"], record["leftOut"]) == ("model.", 1)
    assert torch.equal(module.state_dict()["conv.weight"], made.state_dict()["conv.weight"])
    with pytest.raises(ExportError, match=r"no name of the weights begins with 'modle\.'; did you mean 'model\.'\?"):
        load(tmp_path / "last.ckpt", module, strip_prefix="modle.")


@pytest.mark.parametrize("prefix", ["backbone.", "net.encoder.", "model._orig_mod.", "model.model."])
def test_any_common_prefix_is_found_by_the_modules_own_names(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + name: value for name, value in network().state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(ExportError) as caught:
        load(tmp_path / "w.pth", network())
    assert f"--strip-prefix {prefix}," in str(caught.value.tip)
    load(tmp_path / "w.pth", network(), strip_prefix=prefix)


def test_a_prefix_that_only_the_module_has_is_named(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ExportError) as caught:
        load(tmp_path / "w.pth", nn.Sequential(OrderedDict(inner=network())))
    assert "the module has 'inner.' before the names of the file" in str(caught.value.tip)


def test_another_number_of_classes_is_not_called_another_architecture(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ExportError, match="size mismatch for bias") as caught:
        load(tmp_path / "w.pth", nn.Linear(2, 3))
    assert "number of classes" in str(caught.value.tip)


def test_the_names_of_another_architecture_are_listed_but_not_all(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ExportError) as caught:
        load(tmp_path / "w.pth", nn.Sequential(*[nn.Linear(2, 3) for _ in range(50)]))
    assert "and 95 more" in caught.value.message
    assert len(caught.value.message) < 1000
    assert caught.value.tip == "is it the right architecture?"


def test_a_prefix_must_explain_most_of_the_module() -> None:
    assert prefix_of(["a.x", "a.y"], ["x", "y"]) == "a."
    assert prefix_of(["a.x", "b", "c"], ["x", "p", "q"]) is None
    assert prefix_of(["x", "y"], ["x", "y"]) is None
    assert prefix_of([], []) is None


def old_densenet_names(state: Any) -> Any:
    """Give a state dict the names that the files of torchvision's hub have."""
    pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)")
    renamed = OrderedDict((pattern.sub(r"\1.\2", name), value) for name, value in state.items())
    return OrderedDict((name, value) for name, value in renamed.items() if not name.endswith("num_batches_tracked"))


@pytest.mark.parametrize(
    "name",
    mostly_long(
        "export",
        ["torchvision:densenet121", "torchvision:densenet169", "timm:densenet121"],
        ["torchvision:densenet121"],
    ),
)
def test_the_older_names_of_the_hub_are_read_as_the_library_reads_them(tmp_path: Path, name: str) -> None:
    opened = open_recipe(RecipeSource.parse(name), tmp_path)
    made, module = opened.build(), opened.build()
    state = old_densenet_names(made.state_dict())
    torch.save(state, tmp_path / "hub.pth")
    with pytest.raises(RuntimeError):
        module.load_state_dict(torch.load(tmp_path / "hub.pth"))
    names = module.state_dict().keys()
    apply_weights(module, load_weights("hub.pth", opened, tmp_path, wanted=names), adapt=opened.adapt_weights)
    for key, value in made.state_dict().items():
        assert torch.equal(module.state_dict()[key], value) or key.endswith("num_batches_tracked")


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_every_densenet_gets_the_names_of_today(name: str, tmp_path: Path) -> None:
    opened = open_recipe(RecipeSource.parse(f"torchvision:{name}"), tmp_path)
    with torch.device("meta"):
        state = opened.build().state_dict()
    old = old_densenet_names(state)
    assert not old.keys() <= state.keys()
    assert opened.adapt_weights is not None
    adapted = opened.adapt_weights(old)
    assert adapted.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    assert all(adapted[key].shape == state[key].shape for key in adapted)


@pytest.mark.parametrize(
    "name",
    mostly_long("export", ["mnasnet0_5", "vit_b_16", "googlenet", "inception_v3"], ["mnasnet0_5", "googlenet"]),
)
def test_a_classifier_that_loads_in_a_way_of_its_own_takes_its_own_file(tmp_path: Path, name: str) -> None:
    from torchvision import models

    opened = open_recipe(RecipeSource.parse(f"torchvision:{name}"), tmp_path)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    hubs = models.get_model(name, weights=None, **options)  # with auxiliary heads, as the hub's files are
    torch.save(hubs.state_dict(), tmp_path / "hub.pth")
    module = opened.build()
    weights = load_weights("hub.pth", opened, tmp_path, wanted=module.state_dict().keys())
    apply_weights(module, weights, adapt=opened.adapt_weights)
    assert all(torch.equal(hubs.state_dict()[key], value) for key, value in module.state_dict().items())
    torch.save(module.state_dict(), tmp_path / "own.pth")
    apply_weights(opened.build(), load_weights("own.pth", opened, tmp_path), adapt=opened.adapt_weights)


def test_weights_of_another_architecture_stay_refused_where_a_library_adapts_them(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    for name in ("torchvision:densenet121", "timm:mobilenetv3_small_050"):
        opened = open_recipe(RecipeSource.parse(name), tmp_path)
        with pytest.raises(ExportError, match=r"do not fit the module:\n  Missing key"):
            apply_weights(opened.build(), load_weights("w.pth", opened, tmp_path), adapt=opened.adapt_weights)


def test_a_module_without_parameters_needs_no_weights(tmp_path: Path) -> None:
    for source in ("none", "recipe"):
        weights = load_weights(source, recipe(nn.Identity), tmp_path, wanted=())
        apply_weights(nn.Identity(), weights)
        assert weights.record == {"source": "none"}
    with pytest.raises(ExportError, match="has no weights of its own"):
        load_weights("recipe", recipe(), tmp_path, wanted=["weight"])
    with pytest.raises(ExportError, match="the module has 2 parameters and buffers, and the weights are 'none'"):
        apply_weights(nn.Linear(2, 3), load_weights("none", recipe(), tmp_path))
