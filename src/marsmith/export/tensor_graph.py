"""The exported graph around a module that takes and returns tensors of any kind: tensors in, tensors out, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from marsmith.errors import ExportError
from marsmith.export.recipes.recipe import TensorRecipe
from marsmith.export.tensor_calls import outputs_of


class TensorGraph(torch.nn.Module):
    """Gives the module its inputs as it takes them, and flattens what it returns.

    TorchScript can trace it; what goes in and comes out of the trace is a row of tensors, whatever the module takes.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str], call: str) -> None:
        super().__init__()
        self.module = module
        self.names = list(names)
        self.call = call

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Map one tensor an input to one tensor, or to a tuple of them."""
        outputs = tuple(outputs_of(self.raw(*tensors)))
        return outputs[0] if len(outputs) == 1 else outputs

    def raw(self, *tensors: torch.Tensor) -> Any:
        """Return what the module itself returns."""
        if self.call == "mapping":
            return self.module(dict(zip(self.names, tensors, strict=True)))
        if self.call in ("list", "tuple"):
            return self.module(list(tensors) if self.call == "list" else tensors)
        return self.module(*tensors)


def output_names(raw: Any, wanted: Sequence[str]) -> list[str]:
    """Return the names of what a module returned, flattened: those wanted, or those of its mapping, or numbers.

    Raises:
        ExportError: there are more or fewer names than tensors.
    """
    found = _names(raw, "")
    if wanted and len(wanted) != len(found):
        raise ExportError(f"the recipe names {len(wanted)} outputs ({', '.join(wanted)}), the module has {len(found)}")
    if wanted:
        return list(wanted)
    return ["output"] if found == [""] else [name if not name[:1].isdigit() else f"output_{name}" for name in found]


def _names(value: Any, name: str) -> list[str]:
    if isinstance(value, torch.Tensor):
        return [name]
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [one for key, part in parts for one in _names(part, f"{name}.{key}" if name else str(key))]


def call_rows(recipe: TensorRecipe) -> tuple[list[str], list[tuple[torch.Tensor, ...]]]:
    """Return the names of a recipe's inputs, and its examples as rows without the batch axis.

    Raises:
        ExportError: there are no examples, they are not mappings of names to tensors, or do not fit one another.
    """
    try:
        examples = [dict(example) for example in recipe.examples()]
    except Exception as error:  # a recipe is anybody's code
        raise ExportError(f"examples() of the recipe raises {type(error).__name__}: {error}") from error
    if not examples or not examples[0]:
        raise ExportError(
            "the recipe gives no examples", tip="one mapping of input names to tensors, batch on axis 0, is enough"
        )
    names = list(examples[0])
    rows: list[tuple[torch.Tensor, ...]] = []
    for example in examples:
        _check(example, names)
        rows += zip(*(example[name] for name in names), strict=True)
    return names, rows


def _check(example: Mapping[str, Any], names: Sequence[str]) -> None:
    if list(example) != list(names):
        raise ExportError(f"one example of the recipe has the inputs {list(example)}, another {list(names)}")
    wrong = [name for name, value in example.items() if not isinstance(value, torch.Tensor) or value.ndim == 0]
    if wrong:
        raise ExportError(
            f"the example input {wrong[0]!r} is no tensor with a batch axis", tip="its axis 0 is the batch"
        )
    sizes = {name: value.shape[0] for name, value in example.items()}
    if len(set(sizes.values())) > 1:
        raise ExportError(f"the inputs of one example have different batch sizes: {sizes}")


def doubled(recipe: TensorRecipe, names: Sequence[str], batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return a batch whose axes of any length are twice as long."""
    return tuple(_doubled(tensor, recipe.dynamic.get(name, ())) for name, tensor in zip(names, batch, strict=True))


def _doubled(tensor: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    for axis in axes:
        tensor = torch.cat([tensor, tensor], dim=axis)
    return tensor


def signature(
    recipe: TensorRecipe, names: Sequence[str], batch: Sequence[torch.Tensor], outputs: tuple[Any, Any]
) -> dict[str, Any]:
    """Return inputs, outputs and the handler's settings as export.json has them; None where an axis may vary.

    Args:
        recipe: which axes may vary.
        names: of the inputs.
        batch: inputs that the module was run on.
        outputs: what it returned for them, and for the same with longer axes.
    """
    inputs = [
        {"name": name, "dtype": _dtype(tensor), "shape": _shape(tensor.shape, recipe.dynamic.get(name, ()))}
        for name, tensor in zip(names, batch, strict=True)
    ]
    first, second = map(outputs_of, outputs)
    given = []
    for name, tensor, longer in zip(output_names(outputs[0], recipe.outputs), first, second, strict=True):
        varies = [axis for axis, size in enumerate(tensor.shape) if longer.shape[axis] != size]
        given.append({"name": name, "dtype": _dtype(tensor), "shape": _shape(tensor.shape, varies)})
    settings = {
        "inputs": [{**one, "shape": one["shape"][1:]} for one in inputs],
        "outputs": [one["name"] for one in given],
    }
    return {"inputs": inputs, "outputs": given, "preprocessing": {"byTheHandler": settings, "inTheGraph": {}}}


def _shape(shape: Sequence[int], varies: Sequence[int]) -> list[int | None]:
    return [None, *(None if axis in varies else size for axis, size in enumerate(shape[1:], start=1))]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
