from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from marsmith.build import build_from_spec
from marsmith.config import load_spec
from marsmith.errors import ExportError
from marsmith.export import TensorRecipe
from marsmith.export.messages import JobRequest, JobResult
from marsmith.export.recipes.torchscript import load_module
from marsmith.export.tensors import TensorJob
from marsmith.project import Project
from marsmith.runtime.runner import Request, Runner
from support.handler_fixtures import Worker, write_manifest


class Ranker(torch.nn.Module):
    """A user's number and what they saw last, in a mapping, to scores and their mean, in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.users = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, given: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen = given["history"].mean(1, keepdim=True)
        scores = self.head(self.users(given["user"]) + seen)
        return {"scores": scores, "facts": (scores.mean(1), given["history"] * 2)}


EXAMPLES = [
    {"user": torch.tensor([1, 2]), "history": torch.tensor([[0.5, 1.0, 2.0], [0.0, 1.0, -1.0]])},
    {"user": torch.tensor([7]), "history": torch.tensor([[3.0, 3.0, 9.0]])},
]
RANKER = TensorRecipe(build=Ranker, examples=lambda: EXAMPLES, call="mapping", dynamic={"history": (1,)})


def export(recipe: TensorRecipe, folder: Path, **options: Any) -> JobResult:
    folder.mkdir(exist_ok=True)
    block = {"recipe": "x.py", **options}
    request = JobRequest(block, "torchscript/float32/torch", "random", {}, str(folder), str(folder))
    return TensorJob(request, recipe, lambda _: None).run()


def two_inputs(module: type[torch.nn.Module], **options: Any) -> TensorRecipe:
    examples = [{"a": torch.randn(3, 2), "b": torch.randn(3, 2)}]
    return TensorRecipe(build=module, examples=lambda: examples, **options)


def test_a_module_that_takes_and_returns_mappings_gets_a_signature(tmp_path: Path) -> None:
    result = export(RANKER, tmp_path / "out")
    assert result.problems == []
    assert result.report["inputs"] == [
        {"name": "user", "dtype": "int64", "shape": [None]},
        {"name": "history", "dtype": "float32", "shape": [None, None]},
    ]
    assert result.report["outputs"] == [
        {"name": "scores", "dtype": "float32", "shape": [None, 3]},
        {"name": "facts.0", "dtype": "float32", "shape": [None]},
        {"name": "facts.1", "dtype": "float32", "shape": [None, None]},
    ]
    json.dumps(result.report)


def test_the_serialized_file_takes_tensors_in_the_order_of_the_signature(tmp_path: Path) -> None:
    result = export(RANKER, tmp_path / "out")
    torch.manual_seed(0)
    eager = Ranker().eval()
    given = {"user": torch.tensor([3, 4, 5, 6, 0]), "history": torch.randn(5, 3)}
    want, got = eager(given), load_module(Path(result.serialized_file))(given["user"], given["history"])
    assert torch.allclose(got[0], want["scores"], atol=1e-5)
    assert torch.allclose(got[1], want["facts"][0], atol=1e-5)


class Pair(torch.nn.Module):
    def forward(self, pair: Any) -> Any:
        a, b = pair
        return [a + b, a * b]


class Sum(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b if bool((a > -100).all()) else a - b


class Padded(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        length = int(a.shape[1]) if not isinstance(a.shape[1], torch.Tensor) else int(a.shape[1].item())
        return torch.cat([a, b], 1) + torch.arange(2 * length)


class Mixing(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b.sum(0, keepdim=True)


class Nothing(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return "nothing"


@pytest.mark.parametrize("call", ["list", "tuple"])
def test_a_module_may_take_its_inputs_in_a_list_or_a_tuple(call: Any, tmp_path: Path) -> None:
    result = export(two_inputs(Pair, call=call, outputs=("sum", "product")), tmp_path / "out")
    assert [one["name"] for one in result.report["outputs"]] == ["sum", "product"]


def test_a_branch_on_values_is_refused_when_tracing_and_kept_when_scripting(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Python takes a value out of a tensor"):
        export(two_inputs(Sum), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    result = export(two_inputs(Sum), tmp_path / "out", method="script")
    low = torch.full((1, 2), -200.0)
    assert torch.equal(load_module(Path(result.serialized_file))(low, low), torch.zeros(1, 2))


def giving(*examples: Any) -> Any:
    """Return the ``examples`` of a recipe, right or wrong."""
    return lambda: list(examples)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (two_inputs(Mixing), {}, "depends on the rest of the batch"),
        (two_inputs(Nothing), {}, "returns str, not tensors"),
        (two_inputs(Pair, call="list", outputs=("sum",)), {}, "names 1 outputs .*, the module has 2"),
        (two_inputs(Pair, call="list"), {"method": "script"}, "cannot be scripted with a signature"),
        (two_inputs(Pair), {}, "does not take a batch of 2: TypeError"),
        (two_inputs(Padded, dynamic={"a": (1,), "b": (1,)}), {}, "length of an axis is baked into the export: a, b"),
        (two_inputs(Sum, dynamic={"a": (1,)}), {"method": "script"}, "does not take longer axes: RuntimeError"),
        (TensorRecipe(build=Sum, examples=list), {}, "gives no examples"),
        (
            TensorRecipe(build=Sum, examples=giving((torch.ones(2, 3), torch.ones(2, 3)))),
            {},
            "is a tuple, not a mapping",
        ),
        (
            TensorRecipe(build=Sum, examples=giving({0: torch.ones(2, 3)})),
            {},
            "is a dict, not a mapping of input names",
        ),
        (TensorRecipe(build=Sum, examples=lambda: [{"a": 3}]), {}, "'a' is not a tensor"),  # type: ignore[dict-item]
        (
            TensorRecipe(build=Sum, examples=lambda: [{"a": torch.ones(1, 2), "b": torch.ones(2, 2)}]),
            {},
            "different batch sizes",
        ),
        (TensorRecipe(build=Sum, examples=lambda: 1 / 0), {}, "raises ZeroDivisionError"),  # type: ignore[arg-type,return-value]
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    recipe: TensorRecipe, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(recipe, tmp_path / "out", **options)
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture
def ranker(tmp_path: Path) -> Worker:
    """A worker of TorchServe with an archive made of the export."""
    result = export(RANKER, tmp_path / "model")
    folder = Path(result.serialized_file).parent
    write_manifest(folder, "tensor_handler.py")
    handler = result.report["preprocessing"]["byTheHandler"]
    (folder / "model-config.yaml").write_text(json.dumps({"minWorkers": 1, "handler": handler}))
    return Worker(folder, "tensor_handler.py")


def test_the_handler_takes_inputs_by_name_as_json_and_as_safetensors(ranker: Worker) -> None:
    torch.manual_seed(0)
    want = Ranker().eval()({"user": torch.tensor([3]), "history": torch.tensor([[1.0, 2.0]])})
    as_json = json.dumps({"history": [1.0, 2], "user": 3}).encode(), "application/json"
    as_file = save({"user": np.array(3), "history": np.array([1, 2], np.float32)}), "application/x-safetensors"
    first, second = ranker.send(as_json, as_file)
    assert first.json()["scores"] == pytest.approx(want["scores"][0].tolist(), abs=1e-5)
    assert first.json()["facts.1"] == [2.0, 4.0]
    np.testing.assert_allclose(load(second.body)["scores"], want["scores"][0].detach().numpy(), atol=1e-5)


def test_rows_of_different_lengths_in_one_batch_are_answered_each(ranker: Worker) -> None:
    bodies = [json.dumps({"user": n, "history": [1.0] * n}).encode() for n in (1, 2, 2, 3)]
    assert [len(reply.json()["facts.1"]) for reply in ranker.send(*bodies)] == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"user": 3}, 422, "no 'history'"),
        ({"user": 3, "history": [1.0], "extra": 1}, 422, "'extra' is no input"),
        ({"user": 3.5, "history": [1.0]}, 422, "not whole"),
        ({"user": [3], "history": [1.0]}, 422, "shape [1]; the model takes []"),
        ({"user": 3, "history": [[1.0], [1, 2]]}, 400, "equally long"),
        ({"user": "three", "history": [1.0]}, 400, "not numbers"),
        ([1.0, 2.0], 422, "with these names"),
    ],
)
def test_a_wrong_input_gets_its_own_status_and_its_neighbour_an_answer(
    ranker: Worker, body: Any, status: int, words: str
) -> None:
    wrong, right = ranker.send(json.dumps(body).encode(), json.dumps({"user": 1, "history": [1.0]}).encode())
    assert (wrong.status, right.status) == (status, 200)
    assert words in wrong.json()["message"]


def test_numbers_that_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    recipe = TensorRecipe(
        build=lambda: torch.nn.Identity(), examples=lambda: [{"x": torch.zeros(2, 2, dtype=torch.uint8)}]
    )
    result = export(recipe, tmp_path / "model")
    folder = Path(result.serialized_file).parent
    write_manifest(folder, "tensor_handler.py")
    handler = result.report["preprocessing"]["byTheHandler"]
    (folder / "model-config.yaml").write_text(json.dumps({"minWorkers": 1, "handler": handler}))
    large, bare, named = Worker(folder, "tensor_handler.py").send(b"[256, 1]", b"[255, 1]", b'{"x": [3, 4]}')
    assert (large.status, bare.json(), named.json()) == (422, [255, 1], [3, 4])


def test_a_spec_with_a_tensor_recipe_becomes_an_archive_that_answers(project: Project) -> None:
    recipe = (
        "import torch\nfrom marsmith.export import TensorRecipe\n"
        "RECIPE = TensorRecipe(build=lambda: torch.nn.Bilinear(2, 2, 3),\n"
        "    examples=lambda: [{'a': torch.ones(2, 2), 'b': torch.ones(2, 2)}], outputs=('scores',))\n"
    )
    (project.root / "export" / "pair.py").write_text(recipe)
    (project.root / "request.json").write_text('{"a": [1, 2], "b": [3, 4]}')
    (project.specs / "pair.yaml").write_text(
        "name: pair\nversion: '1.0'\nexport: {recipe: export/pair.py, weights: random}\n"
        "handler: {entry_point: handlers/tensor_handler.py}\nexamples: [{input: request.json}]\n"
    )
    built = build_from_spec(project, load_spec(project, "pair"))
    torch.manual_seed(0)
    wanted = torch.nn.Bilinear(2, 2, 3)(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    with Runner(built.path) as runner:
        (reply,) = runner.run([Request(b'{"b": [3, 4], "a": [1, 2]}')])
    assert reply.json() == pytest.approx(wanted[0].tolist(), abs=1e-5)
