from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from marsmith import machine
from marsmith.archive.environment import version_here
from marsmith.config.form import Form
from marsmith.errors import ExportError
from marsmith.export import machine as export_machine
from marsmith.export.formats.onnx import to_onnx
from marsmith.export.image_graph import ImageGraph
from marsmith.export.recipes.recipe import Recipe, load_recipe
from marsmith.export.serialize import Files, serialize
from marsmith.runtime import environment
from marsmith.runtime.imports import local_imports
from marsmith_handler import engines, processor
from marsmith_handler.engines import onnxruntime_engine, openvino_engine
from support.engine_fixtures import LABELS, archive_folder, pictures, small_graph, small_pt2
from support.handler_fixtures import Worker, write_examples
from support.long_tests import long
from support.projects import REPOSITORY
from support.vision_fixtures import photo

CPU = torch.device("cpu")
HANDLER = "image_classifier_handler.py"
SIZES = (1, 3, 8)
WRITTEN = (
    "torchscript/float32/torch",
    "torchscript/bfloat16/torch",
    "torchscript/float16/torch",
    "onnx/float32/openvino",
)
# Which written file an engine runs, its settings, and how far from eager it may be: half precision keeps 8 or 11 bits.
FORMS: dict[str, tuple[str, float]] = {
    "torchscript/float32/torch": ("torchscript/float32/torch", 1e-5),
    "torchscript/bfloat16/torch": ("torchscript/bfloat16/torch", 0.03),
    "torchscript/float16/torch": ("torchscript/float16/torch", 0.005),
    "torchscript/float32/openvino": ("torchscript/float32/torch", 1e-5),
    "torchscript/bfloat16/openvino": ("torchscript/float32/torch", 0.03),
    "onnx/float32/onnxruntime": ("onnx/float32/openvino", 1e-5),
    "onnx/float32/openvino": ("onnx/float32/openvino", 1e-5),
}


@pytest.fixture(scope="module")
def graph() -> ImageGraph:
    return small_graph()


@pytest.fixture(scope="module")
def written(graph: ImageGraph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    root = tmp_path_factory.mktemp("forms")
    return {text: write(graph, text, root / text.replace("/", "-")) for text in WRITTEN}


def write(graph: torch.nn.Module, text: str, folder: Path, **options: Any) -> Files:
    folder.mkdir()
    return serialize(graph, Form.parse(text), images=pictures(3), folder=folder, **options)


def load(files: Files, text: str, **block: Any) -> engines.Engine:
    form = Form.parse(text)
    place = files.serialized_file.parent
    block = {"engine": form.engine, "precision": form.precision, **block}
    return engines.load_engine(place, files.serialized_file.name, block, CPU, 1)


def largest_error(
    run: Callable[[torch.Tensor], torch.Tensor], graph: torch.nn.Module, images: list[torch.Tensor]
) -> float:
    batch = torch.stack(images)
    with torch.inference_mode():
        got, want = run(batch), graph(batch)
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    return float((got - want).abs().max())


@pytest.mark.parametrize("text", FORMS)
def test_every_form_answers_as_the_eager_module_does(text: str, graph: ImageGraph, written: dict[str, Files]) -> None:
    source, limit = FORMS[text]
    run = load(written[source], text)
    form = Form.parse(text)
    assert run.name == form.engine
    assert (run.fell_back is None) == (run.precision == form.precision)
    for count in SIZES:
        assert largest_error(run, graph, pictures(count)) <= limit


@pytest.mark.parametrize("text", [text for text in FORMS if not text.endswith("/torch")])
def test_a_result_outlives_the_next_batch_and_other_shapes_are_run_too(
    text: str, graph: ImageGraph, written: dict[str, Files]
) -> None:
    run = load(written[FORMS[text][0]], text)
    first, second = torch.stack(pictures(2)), torch.stack(pictures(2)).flip(0)
    with torch.inference_mode():
        before = run(first)
        kept = before.clone()
        run(second)
    assert torch.equal(before, kept)
    if text.startswith("torchscript"):
        assert largest_error(run, graph, pictures(2, side=64)) <= FORMS[text][1]


def test_pt2_answers_as_the_eager_module_does_and_is_refused_on_another_cpu(
    graph: ImageGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_pt2()
    run = load(files, "pt2/float32/aot_inductor")
    for count in SIZES:
        assert largest_error(run, graph, pictures(count)) <= 1e-5
    with zipfile.ZipFile(files.serialized_file) as records:
        assert not [name for name in records.namelist() if name.endswith(".cpp")]
    # A CPU of 2010, as Linux would show it.
    older = tmp_path / "cpuinfo"
    older.write_text("processor\t: 0\nflags\t\t: fpu sse sse2 sse4_1 sse4_2\n")
    monkeypatch.setattr(processor, "CPU_INFO", older)
    with pytest.raises(RuntimeError, match=r"model\.pt2 is made for another CPU: this one lacks .*avx2"):
        load(files, "pt2/float32/aot_inductor")


@dataclass(frozen=True)
class Lite0:
    """EfficientNet-Lite0 with its real weights, eight photos and mirror images, and what it says about them."""

    graph: ImageGraph
    images: list[torch.Tensor]
    wanted: torch.Tensor


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    import skimage.data
    from torchvision.transforms import v2

    recipe = load_recipe(REPOSITORY / "export" / "efficientnet_lite0.py")
    assert isinstance(recipe, Recipe)
    assert recipe.bundled_weights is not None
    assert callable(recipe.labels)
    network = recipe.build()
    network.load_state_dict(torch.load(recipe.bundled_weights(), weights_only=True))
    graph = ImageGraph(network, recipe.preprocessing).eval()
    prepare = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    photos = [torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1) for name in ("cat", "coffee", "rocket")]
    images = [prepare(photo).contiguous() for photo in photos]
    images = [*images, *(image.flip(-1) for image in images), *(image.flip(-2) for image in images[:2])]
    with torch.inference_mode():
        wanted = graph(torch.stack(images))
    assert list(recipe.labels())[int(wanted[0].argmax())] == "tiger cat"
    return Lite0(graph, images, wanted)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("torchscript/float32/torch", ["torchscript/float32/torch", "torchscript/float32/openvino"]),
        pytest.param("torchscript/bfloat16/torch", ["torchscript/bfloat16/torch"], marks=long("export")),
        pytest.param(
            "onnx/float32/onnxruntime", ["onnx/float32/onnxruntime", "onnx/float32/openvino"], marks=long("export")
        ),
    ],
)
def test_efficientnet_lite0_keeps_its_answers_in_every_form(
    lite0: Lite0, text: str, runs: list[str], tmp_path: Path
) -> None:
    files = serialize(lite0.graph, Form.parse(text), images=lite0.images[:2], folder=tmp_path)
    for run in runs:
        engine = load(files, run)
        for count in SIZES:
            with torch.inference_mode():
                got = engine(torch.stack(lite0.images[:count]))
            assert torch.equal(got.argmax(1), lite0.wanted[:count].argmax(1))
            assert float((got - lite0.wanted[:count]).abs().max()) <= (0.1 if "bfloat16" in run else 1e-4)


def test_an_onnx_file_is_the_same_every_time_and_tells_nothing_of_the_machine(
    graph: ImageGraph, written: dict[str, Files], tmp_path: Path
) -> None:
    to_onnx(small_graph(), pictures(3), tmp_path / "again.onnx")
    content = (tmp_path / "again.onnx").read_bytes()
    assert content == written["onnx/float32/openvino"].serialized_file.read_bytes()
    for secret in (str(REPOSITORY), "site-packages", "stack_trace", torch.__version__):
        assert secret.encode() not in content
    model = onnx.load_from_string(content)
    (images,), (probabilities,) = model.graph.input, model.graph.output
    dims = images.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", 3, 48, 48]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert probabilities.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


class Odd(torch.nn.Module):
    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.step = step

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.step(images.float().mean(dim=(2, 3)) * self.weight)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda rows: torch.special.i1(rows), r"ONNX has no operator for .*i1"),
        (lambda rows: rows[:2].reshape(2, 3) + rows, "fixes the batch size"),
        (lambda rows: rows if float(rows.sum()) > 0 else -rows, r"torch\.export cannot express the module"),
    ],
    ids=["operator", "batch", "control flow"],
)
def test_what_onnx_cannot_express_is_named_with_what_to_try(
    step: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        serialize(Odd(step), Form.parse("onnx/float32/onnxruntime"), images=pictures(3), folder=tmp_path)
    assert "torchscript" in (caught.value.tip or "")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    module = Odd(lambda rows: rows)
    module.step = lambda rows: rows
    module.weight.data[1] = float("nan")
    with pytest.raises(ExportError, match=r"not numbers \(NaN\): .*weight"):
        to_onnx(module, pictures(3), tmp_path / "model.onnx")


def test_without_a_compiler_pt2_is_refused_with_what_to_install(
    graph: ImageGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ExportError, match="no compiler for pt2: no-such-compiler") as caught:
        serialize(graph, Form.parse("pt2/float32/aot_inductor"), images=pictures(3), folder=tmp_path)
    assert "install g++" in (caught.value.tip or "")


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("model.pt", "torch"),
        ("model.pt", "openvino"),
        ("model.onnx", "openvino"),
        ("model.onnx", "onnxruntime"),
        ("model.xml", "openvino"),
        ("model.pt2", "aot_inductor"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "noise", "missing"])
def test_a_damaged_file_is_refused_by_its_name(
    name: str, engine: str, damage: str, written: dict[str, Files], tmp_path: Path
) -> None:
    onnx_file = written["onnx/float32/openvino"].serialized_file
    whole = onnx_file if name.endswith("onnx") else written["torchscript/float32/torch"].serialized_file
    content = {"cut": whole.read_bytes()[:9000], "noise": b"\x89noise" * 500}
    if damage in content:
        (tmp_path / name).write_bytes(content[damage])
    with pytest.raises(RuntimeError, match=rf"{name}"):
        engines.load_engine(tmp_path, name, {"engine": engine}, CPU, 1)


def test_a_module_of_two_inputs_is_refused_by_other_engines_than_torch(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return one + other

    torch.jit.script(Sum()).save(str(tmp_path / "model.pt"))
    one = torch.ones(2)
    assert torch.equal(engines.load_engine(tmp_path, "model.pt", {}, CPU, 1).run(one, one), one + one)
    with pytest.raises(RuntimeError, match=r"model\.pt takes 2 tensors and gives 1.*engine: torch"):
        engines.load_engine(tmp_path, "model.pt", {"engine": "openvino"}, CPU, 1)


def test_every_wrong_setting_is_told_at_once() -> None:
    block = {
        "engine": "fast",
        "precision": "int4",
        "engine_missing": "ask",
        "engine_file": "../x",
        "engine_tolerance": -1,
    }
    with pytest.raises(RuntimeError) as caught:
        engines.read_engine_settings(block)
    assert all(f"{key} is" in str(caught.value) for key in block)


# Engines that are not installed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_tells_the_precision_that_it_computes_in_on_this_processor(
    precision: str, written: dict[str, Files], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = load(written["torchscript/float32/torch"], f"torchscript/{precision}/openvino")
    run(torch.stack(pictures(1)))
    engine: Any = run.run
    (request,) = engine._requests.values()
    really = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT").to_string()
    assert {"f32": "float32", "bf16": "bfloat16"}[really] == run.precision
    lacking = f"this processor has no {precision}, and openvino computes in {run.precision}"
    assert run.fell_back == (None if run.precision == precision else lacking)
    assert (lacking in caplog.text) == (run.precision != precision)


@pytest.mark.parametrize(
    ("wanted", "capabilities", "computed"),
    [
        ("bfloat16", ["FP32", "INT8"], "float32"),
        ("bfloat16", ["FP32", "INT8", "BF16"], "bfloat16"),
        ("float16", ["FP32", "BF16"], "float32"),
        ("int8", ["FP32"], "int8"),
        ("float32", ["FP32", "BF16"], "float32"),
    ],
)
def test_openvino_computes_in_float32_where_the_processor_lacks_the_precision(
    wanted: str, capabilities: list[str], computed: str
) -> None:
    assert openvino_engine.computed_precision(wanted, capabilities) == computed


X86 = "x86_64"


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "overflows"),
    [
        (X86, "flags\t\t: fpu avx2 fma", True),
        (X86, "flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        (X86, "flags\t\t: fpu avx2 avx_vnni", False),
        (X86, "", False),
        ("aarch64", "Features\t: fp asimd", False),
    ],
)
def test_int8_overflows_on_x86_without_vnni(
    architecture: str, cpuinfo: str, overflows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor(tmp_path, monkeypatch, architecture, cpuinfo)
    assert processor.overflows_in_int8() == overflows
    # What refuses to make it, and what refuses to run it, are of one mind.
    assert export_machine.overflows_in_int8(architecture, machine.cpu_flags(cpuinfo)) == overflows


@pytest.mark.parametrize(("flags", "exact"), [("avx2", True), ("avx2 avx_vnni", False)])
def test_onnxruntime_takes_exact_kernels_only_where_the_fast_ones_overflow(
    flags: str, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor(tmp_path, monkeypatch, X86, f"flags\t\t: {flags}")
    options = onnxruntime_engine._options(onnxruntime_engine.import_onnxruntime(), 1)
    key = "session.x64quantprecision"
    if exact:
        assert options.get_session_config_entry(key) == "1"
    else:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)


def _processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, cpuinfo: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}\n")
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: architecture)


def test_where_int8_overflows_another_engine_steps_in_or_the_load_is_refused(
    graph: ImageGraph, written: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor(tmp_path, monkeypatch, X86, "flags\t\t: avx2")
    plain = written["torchscript/float32/torch"]
    # As in the archive: float32 TorchScript beside the int8 file that the engine opens.
    (plain.serialized_file.parent / "model.onnx").write_bytes(b"int8")
    run = load(plain, "torchscript/int8/openvino", engine_file="model.onnx")
    assert (run.name, run.precision) == ("torch", "float32")
    assert "int8 overflows in openvino on this processor, which has no VNNI" in (run.fell_back or "")
    assert largest_error(run, graph, pictures(3)) <= 1e-5
    with pytest.raises(RuntimeError, match=r"int8 overflows in openvino .* and engine_missing is refuse"):
        load(plain, "torchscript/int8/openvino", engine_file="model.onnx", engine_missing="refuse")
    with pytest.raises(RuntimeError, match=r"model\.pt is int8 for torch, which overflows on this processor"):
        load(plain, "torchscript/int8/torch")
    assert load(written["onnx/float32/openvino"], "onnx/int8/onnxruntime").fell_back is None
    assert load(written["onnx/float32/openvino"], "onnx/int8/openvino").name == "onnxruntime"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make modules unimportable, as if they were not installed."""

    def block(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return block


def test_torch_steps_in_for_an_engine_that_is_not_installed_and_says_so(
    graph: ImageGraph,
    written: dict[str, Files],
    without: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    without("openvino")
    with caplog.at_level(logging.WARNING):
        run = load(written["torchscript/float32/torch"], "torchscript/bfloat16/openvino")
    assert (run.name, run.precision) == ("torch", "float32")
    assert "openvino is not installed" in (run.fell_back or "")
    assert "torch runs model.pt in float32 instead" in caplog.text
    assert largest_error(run, graph, pictures(3)) <= 1e-5


def test_an_engine_that_is_not_installed_is_refused_where_the_policy_says_so(
    written: dict[str, Files], without: Callable[..., None]
) -> None:
    without("openvino")
    with pytest.raises(RuntimeError, match=r"openvino is not installed.*engine_missing is refuse"):
        load(written["torchscript/float32/torch"], "torchscript/float32/openvino", engine_missing="refuse")


def test_onnx_is_run_by_the_engine_that_is_there(
    graph: ImageGraph, written: dict[str, Files], without: Callable[..., None]
) -> None:
    files = written["onnx/float32/openvino"]
    without("onnxruntime")
    run = load(files, "onnx/float32/onnxruntime")
    assert run.name == "openvino"
    assert largest_error(run, graph, pictures(3)) <= 1e-5
    without("openvino")
    with pytest.raises(RuntimeError, match=r"onnxruntime is not installed.*openvino is not installed"):
        load(files, "onnx/float32/onnxruntime")


def test_a_handler_tells_which_engine_answers(
    written: dict[str, Files], tmp_path: Path, without: Callable[..., None]
) -> None:
    files = written["torchscript/float32/torch"]
    folder = archive_folder(tmp_path / "model", files, engine="openvino")
    worker = Worker(folder, HANDLER)
    told = worker.service._entry_point.__self__.describe()
    assert (told["engine"], told["precision"], told["engine_fell_back"]) == ("openvino", "float32", False)
    without("openvino")
    told = Worker(folder, HANDLER).service._entry_point.__self__.describe()
    assert told["engine"] == "torch"
    assert "openvino is not installed" in told["engine_fell_back"]


@pytest.mark.parametrize(
    ("text", "of_torch"),
    [("torchscript/float32/torch", 2), ("torchscript/float32/openvino", 1), ("onnx/float32/onnxruntime", 1)],
)
def test_torch_leaves_the_threads_to_an_engine_that_has_its_own(
    text: str, of_torch: int, written: dict[str, Files], tmp_path: Path
) -> None:
    folder = archive_folder(tmp_path / "model", written[FORMS[text][0]], engine=Form.parse(text).engine, threads=2)
    before = torch.get_num_threads()
    try:
        told = Worker(folder, HANDLER).service._entry_point.__self__.describe()
        assert (told["engine"], told["threads"]) == (Form.parse(text).engine, 2)
        assert torch.get_num_threads() == of_torch
    finally:
        torch.set_num_threads(before)


def test_a_sound_fallback_loads_although_its_answers_are_not_those_of_int8(
    written: dict[str, Files], tmp_path: Path, without: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validated reply is 0.04 off and tells another third label, as int8 may; the environment lists openvino."""
    _processor(tmp_path, monkeypatch, X86, "flags\t\t: avx2 avx512_vnni")
    folder = archive_folder(
        tmp_path / "model",
        written["torchscript/float32/torch"],
        engine="openvino",
        precision="int8",
        environment="strict",
    )
    reply = Worker(folder, HANDLER).send(photo(0, (60, 60)))[0].json()
    best, second, third = reply
    other = next(label for label in LABELS if label not in reply)
    validated = {best: reply[best] - 0.04, second: reply[second] + 0.04, other: reply[third]}
    example = {"input": "a.png", "content_type": "image/png", "status": 200, "reply": validated, "tolerance": 1e-3}
    write_examples(folder, [example], {"a.png": photo(0, (60, 60))})
    record = f"python=={version_here('python')}\nopenvino=={version_here('openvino')}\n"
    (folder / "MAR-INF" / "environment.txt").write_text(record)
    with pytest.raises(RuntimeError, match="answers differently"):
        Worker(folder, HANDLER)
    without("openvino")
    Worker(folder, HANDLER)
    validated[best] -= 0.5
    write_examples(folder, [example], {})
    with pytest.raises(RuntimeError, match=r"answers differently.*tolerance 0\.25"):
        Worker(folder, HANDLER)


# What rides along --------------------------------------------------------------------------------------------------


def test_all_engines_ride_along_and_the_environment_names_the_chosen_one_alone() -> None:
    entry = REPOSITORY / "handlers" / HANDLER
    files = [entry, *local_imports(entry)]
    names = {file.name for file in files}
    assert {f"{engine}_engine.py" for engine in engines.ENGINES} | {"__init__.py"} <= names
    found = {engine: set(environment.record(files, engine=engine).distributions) for engine in engines.ENGINES}
    assert {"openvino", "onnxruntime"}.isdisjoint(found["torch"] | found["aot_inductor"])
    assert found["openvino"] - found["torch"] == {"openvino"}
    assert found["onnxruntime"] - found["torch"] == {"onnxruntime"}


PROBE = """
import json, sys
from pathlib import Path
import torch
from marsmith_handler import engines
for name, engine in (("model.pt", "openvino"), ("model.onnx", "openvino"), ("model.onnx", "onnxruntime")):
    block = {"engine": engine, "engine_missing": "refuse"}
    run = engines.load_engine(Path(sys.argv[1]), name, block, torch.device("cpu"), 1)
    run(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))
loaded = [name for name, module in sys.modules.items() if module and "telemetry" in name]
print(json.dumps([[name, getattr(sys.modules[name], "__file__", "")] for name in loaded]))
"""


def test_no_engine_reports_to_its_makers(written: dict[str, Files], tmp_path: Path) -> None:
    for text in ("torchscript/float32/torch", "onnx/float32/openvino"):
        file = written[text].serialized_file
        (tmp_path / file.name).write_bytes(file.read_bytes())
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key and not key.startswith("XDG")}
    variables = {**kept, "HOME": str(home), "PYTHONPATH": str(REPOSITORY / "handlers")}
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)], env=variables, capture_output=True, text=True, check=True
    )
    loaded = json.loads(ran.stdout.splitlines()[-1])
    # OpenVINO's converter has modules of such names; what they hold then is its own stub.
    assert {name for name, _ in loaded} <= {
        f"openvino.tools.ovc.telemetry_{part}" for part in ("stub", "params", "utils")
    }
    # ONNX Runtime would keep an id of the device and a queue of events there, OpenVINO a note of consent.
    assert [path for path in home.rglob("*") if path.is_file()] == []
