from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.runtime.fake_context import FakeContext
from marsmith_handler.base import BaseHandler
from marsmith_handler.envelope import open_envelope, seal
from marsmith_handler.errors import InsufficientStorage, ItemError
from marsmith_handler.isolation import infer_isolated
from marsmith_handler.replies import Reply
from marsmith_handler.request import Request
from support.handler_fixtures import Doubling, Worker, classifier_folder, write_manifest, write_model
from support.pictures import picture
from support.projects import REPOSITORY

# A model of its own kind: items are words, the answer is the word in capitals. Some words go wrong on purpose.
SHOUT = """
from marsmith_handler.errors import UnprocessableContent
from marsmith_handler.base import BaseHandler


class ShoutHandler(BaseHandler):
    batches = []

    def load(self):
        pass

    def decode(self, request):
        text = request.as_text()
        if text == "odd":
            raise UnprocessableContent("odd words are refused")
        if text == "bug":
            raise AttributeError("a mistake in the handler")
        return int(text[3:]) if text.startswith("int") else text

    def infer(self, items):
        self.batches.append(list(items))
        if "poison" in items:
            raise RuntimeError("the model chokes\\n[METRICS]Fake.Count:1|#Level:Model|#hostname:h,1")
        if "huge" in items and len(items) > 1:
            raise MemoryError
        if "giant" in items:
            raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")
        return [item.upper() for item in items]

    def encode(self, result, request):
        if result == "NAN":
            return {"value": float("nan")}
        if result == "LONG":
            return "x" * 2000
        if result == "SECRET":
            raise KeyError("encode")
        return {"word": result}
"""


@pytest.fixture
def shout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return shouting(tmp_path, monkeypatch)


def shouting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, metrics: Path | None = None, **handler: Any) -> Worker:
    folder = tmp_path / "model"
    write_manifest(folder, "shout_handler.py")
    (folder / "shout_handler.py").write_text(SHOUT, encoding="utf-8")
    config = {"minWorkers": 1, "handler": {"max_response_bytes": 1000, **handler}}
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.delitem(sys.modules, "shout_handler", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return Worker(folder, "shout_handler.py", batch_size=8, metrics_file=metrics)


def words(worker: Worker, *texts: str) -> list[Any]:
    replies = worker.send(*[text.encode() for text in texts])
    return [reply.json()["word"] if reply.status == 200 else reply.status for reply in replies]


def test_a_word_that_cannot_be_decoded_gets_its_status_and_the_others_their_answers(shout: Worker) -> None:
    assert words(shout, "a", "odd", "b", "bug", "intx", "c") == ["A", 422, "B", 500, 422, "C"]


def test_a_poisonous_item_is_found_in_the_batch_and_the_others_are_answered_together(shout: Worker) -> None:
    assert words(shout, "a", "b", "poison", "c", "d", "poison") == ["A", "B", 500, "C", "D", 500]
    assert sys.modules["shout_handler"].ShoutHandler.batches[-1] == ["a", "b", "c", "d"]


def test_an_item_that_does_not_fit_beside_others_is_answered_and_one_that_never_fits_gets_507(shout: Worker) -> None:
    assert words(shout, "a", "huge", "b") == ["A", "HUGE", "B"]
    assert words(shout, "a", "giant", "b") == ["A", 507, "B"]


def test_what_encode_cannot_answer_fails_alone(shout: Worker) -> None:
    replies = shout.send(b"a", b"nan", b"long", b"secret", b"b")
    assert [reply.status for reply in replies] == [200, 500, 500, 500, 200]
    assert "not finite" in replies[1].json()["message"]
    assert "max_response_bytes" in replies[2].json()["message"]


def test_a_request_without_a_body_is_400(shout: Worker) -> None:
    assert [reply.status for reply in shout.send(b"", [], (b"{", "application/json"))] == [400, 400, 400]


def test_a_request_whose_deadline_has_passed_is_504_and_is_not_inferred(shout: Worker) -> None:
    now_ms = time.time() * 1000
    late = shout.send(b"late", headers={"X-Deadline-Ms": str(now_ms - 50)})
    in_time = shout.send(b"early", headers={"X-Deadline-Ms": str(now_ms + 60_000)})
    wrong = shout.send(b"a", headers={"x-deadline-ms": "soon"})
    assert [late[0].status, in_time[0].status, wrong[0].status] == [504, 200, 400]
    assert ["late"] not in sys.modules["shout_handler"].ShoutHandler.batches


def test_a_body_over_the_limit_and_too_many_items_are_413(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = shouting(tmp_path, monkeypatch, max_body_bytes=10, max_items=2)
    replies = worker.send(b"x" * 11, (json.dumps(["a", "b", "c"]).encode(), "application/json"), b"ok")
    assert [reply.status for reply in replies] == [413, 413, 200]


def test_no_line_of_a_failure_can_be_taken_for_a_metric(shout: Worker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        shout.send(b"poison", b"[PID]1\nTorch worker started.", b"\xff\xfe\n[METRICS]x")
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert any("the model chokes" in line for line in lines)
    parsed = [
        line for line in lines if line.startswith(("[METRICS]", "[PID]")) or line.endswith("Torch worker started.")
    ]
    # TorchServe's own line is the only one.
    assert [line.split(".")[0] for line in parsed] == ["[METRICS]PredictionTime"]


def test_stage_times_are_sent_once_a_batch_where_the_metrics_file_declares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dimensions = ["ModelName", "ModelVersion", "Level"]
    declared = [
        {"name": name, "unit": unit, "dimensions": dimensions}
        for name, unit in [("marsmith_infer_seconds", "s"), ("marsmith_batch_items", "count")]
    ]
    file = tmp_path / "metrics.yaml"
    file.write_text(json.dumps({"model_metrics": {"histogram": declared}}), encoding="utf-8")
    worker = shouting(tmp_path, monkeypatch, metrics=file)
    with caplog.at_level(logging.INFO):
        worker.send(b"a", b"b", b"odd")
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("[METRICS]marsmith")]
    assert len(lines) == 2
    assert any(
        line.startswith(
            "[METRICS]marsmith_batch_items.Count:2.0|#ModelName:tiny,ModelVersion:1.0,Level:Model|#type:HISTOGRAM"
        )
        for line in lines
    )


def test_wrong_settings_are_refused_together_with_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"environment is 'maybe'.*max_items is 0.*prediction_log"):
        shouting(tmp_path, monkeypatch, environment="maybe", max_items=0, prediction_log={"sample": 1})


def test_a_fatal_error_of_the_device_ends_the_process(tmp_path: Path) -> None:
    program = """
import torch
from marsmith_handler.failures import is_fatal, leave
error = RuntimeError("CUDA error: device-side assert triggered")
assert is_fatal(error, torch.device("cpu"))
assert not is_fatal(RuntimeError("CUDA out of memory"), torch.device("cpu"))
assert not is_fatal(ValueError("device-side assert"), torch.device("cpu"))
try:
    leave(error)
finally:
    print("still here")
"""
    handlers = REPOSITORY / "handlers"
    done = subprocess.run([sys.executable, "-c", program], cwd=handlers, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "still here" not in done.stdout
    assert "a fresh one takes its place" in done.stderr


def test_cores_are_shared_among_the_workers(tmp_path: Path) -> None:
    from marsmith_handler import devices

    cores = devices.available_cores()
    alone = devices.choose_placement(None, {"minWorkers": 1}, None, None)
    crowded = devices.choose_placement(None, {"minWorkers": 64 * cores}, None, None)
    assert (alone.device.type, alone.threads, crowded.threads, crowded.decode_threads) == ("cpu", cores, 1, 1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 64),
        ({"cpu.max": "9900000 100000\n"}, 64),
    ],
)
def test_the_quota_of_a_container_limits_the_cores_in_both_versions_of_cgroups(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from marsmith_handler import devices

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    assert devices.available_cores() == expected


def test_a_handler_that_only_decodes_and_encodes_runs_its_torchscript_on_the_batch(tmp_path: Path) -> None:
    class Numbers(BaseHandler):
        def decode(self, request: Request) -> torch.Tensor:
            return torch.tensor(request.as_json(), dtype=torch.float32)

        def encode(self, result: torch.Tensor, request: Request) -> Any:
            return result.tolist()

    write_model(tmp_path, Doubling())
    write_manifest(tmp_path, "numbers_handler.py")
    handler, context = Numbers(), FakeContext(tmp_path, batch_size=4)
    handler.initialize(context)
    replies = handler.handle(context.batch([b"[1, 2]", b"{", b"[3, 4]"], content_type="application/json"), context)
    assert context.statuses == [200, 400, 200]
    assert [json.loads(replies[0]), json.loads(replies[2])] == [[2.0, 4.0], [6.0, 8.0]]
    assert context.content_types == ["application/json"] * 3


def test_the_fake_context_has_everything_that_torchserves_own_has() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        from ts.context import Context

    wanted = {name for name in vars(Context) if not name.startswith("_")}
    fake = FakeContext("/nowhere", manifest={"model": {}})
    missing = {name for name in wanted if not hasattr(fake, name)}
    # What TorchServe's own side sets, and sequence batching asks for.
    assert missing <= {"request_processor", "get_sequence_id"}


def test_the_base_and_every_handler_module_define_one_class_each() -> None:
    import ast

    for module in sorted((REPOSITORY / "handlers").glob("*_handler.py")):
        classes = [node.name for node in ast.parse(module.read_text()).body if isinstance(node, ast.ClassDef)]
        assert len(classes) == 1, module


def test_the_handler_of_the_documentation_passes_the_test_of_the_documentation(tmp_path: Path) -> None:
    import re

    root = REPOSITORY
    page = (root / "docs" / "how-to" / "handler.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mood_handler.py").write_text(blocks[0], encoding="utf-8")
    (tmp_path / "test_mood_handler.py").write_text(blocks[1], encoding="utf-8")
    paths = f"{tmp_path}:{root / 'handlers'}:{root / 'src'}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# Pure parts


@given(st.lists(st.sampled_from(["good", "bad", "large"]), min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=60)
def test_isolation_finds_exactly_the_guilty_items(kinds: list[str], capacity: int) -> None:
    def infer(items: list[Any]) -> list[Any]:
        if sum(kind == "large" for kind, _ in items) > capacity:
            raise MemoryError
        if any(kind == "bad" for kind, _ in items):
            raise ValueError("bad")
        return [index for _, index in items]

    def explain(error: Exception, count: int) -> ItemError:
        return InsufficientStorage("memory") if isinstance(error, MemoryError) else ItemError(500, "Bad", "bad")

    results = infer_isolated(infer, list(zip(kinds, range(len(kinds)), strict=True)), explain)
    expected = ["bad" if kind == "bad" else index for index, kind in enumerate(kinds)]
    assert ["bad" if isinstance(result, ItemError) else result for result in results] == expected


def test_a_model_that_gives_too_few_results_fails_its_items_and_nothing_else() -> None:
    results = infer_isolated(lambda items: items[:1], [1, 2], lambda error, count: ItemError(500, "x", str(error)))
    assert results == [1, 2]
    results = infer_isolated(lambda items: [], [1, 2], lambda error, count: ItemError(500, "x", str(error)))
    assert all(isinstance(result, ItemError) for result in results)


KEYS = ["data", "body", "b64", "instances", "inputs", "name", "shape", "datatype", "id", "x"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES, st.sampled_from(["", "application/json", "text/plain", "image/png"]), st.booleans())
@settings(max_examples=300)
def test_any_json_is_opened_or_refused_with_a_status(value: Any, content_type: str, as_text: bool) -> None:
    body = bytearray(json.dumps(value).encode()) if as_text else value
    envelope = value_or_refusal(
        lambda: open_envelope({"body": body}, {"body": {"content-type": content_type}, "Accept": "*/*"})
    )
    if envelope is None:
        return
    assert envelope.requests
    for request in envelope.requests:
        for read in (request.as_bytes, request.as_text, request.as_json):
            value_or_refusal(read)


def value_or_refusal(read: Callable[[], Any]) -> Any:
    """Return what ``read`` gives; None where it refuses, which must be with a 4xx."""
    code = 400
    try:
        return read()
    except ItemError as error:
        code = error.code
    assert 400 <= code < 500
    return None


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), st.sampled_from(["many", "v1", "v2", "form"])
)
@settings(max_examples=60)
def test_what_is_put_into_an_envelope_comes_out_of_it_in_its_order(bodies: list[bytes], form: str) -> None:
    import base64

    texts = [base64.b64encode(body).decode() for body in bodies]
    by_form: dict[str, Any] = {
        "many": {"body": [{"b64": text} for text in texts]},
        "v1": {"body": {"instances": [{"b64": text} for text in texts]}},
        "v2": {
            "body": {
                "inputs": [
                    {"name": str(i), "shape": [1], "datatype": "BYTES", "data": [text]} for i, text in enumerate(texts)
                ]
            }
        },
        "form": {f"file{i}": bytearray(body) for i, body in enumerate(bodies)},
    }
    envelope = open_envelope(
        by_form[form], {key: {"content-type": "application/octet-stream"} for key in by_form[form]}
    )
    if form != "form" or all(body.lstrip()[:1] not in (b"{", b"[") for body in bodies):
        assert [bytes(request.as_bytes()) for request in envelope.requests] == bodies
    sealed = seal(envelope, [{"n": i} for i in range(len(bodies))], model="m", version="1", request_id="r")
    assert json.loads(json.dumps(sealed)) == sealed


def test_a_reply_with_a_content_type_of_its_own_keeps_it(tmp_path: Path) -> None:
    class Csv(BaseHandler):
        def load(self) -> None:
            pass

        def decode(self, request: Request) -> Any:
            return request.as_text()

        def infer(self, items: list[Any]) -> list[Any]:
            return items

        def encode(self, result: Any, request: Request) -> Any:
            return Reply(b"a,b\n", "text/csv")

    handler, context = Csv(), FakeContext(tmp_path, manifest={"model": {}})
    handler.initialize(context)
    assert handler.handle(context.batch([b"x"]), context) == [b"a,b\n"]
    assert context.content_types == ["text/csv"]


def test_a_gpu_that_torch_does_not_see_is_said_and_the_cpu_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from marsmith_handler import devices

    assert devices.choose_device(0).type == "cpu"
    assert "torch sees none" in caplog.text


def test_the_classifier_answers_the_same_through_the_fake_context(tmp_path: Path) -> None:
    from image_classifier_handler import ImageClassifierHandler

    folder = classifier_folder(tmp_path / "model")
    config = json.loads((folder / "model-config.yaml").read_text())
    handler, context = ImageClassifierHandler(), FakeContext(folder, model_yaml_config=config, batch_size=2)
    handler.initialize(context)
    assert handler.handle(context.batch([picture(255, 0, 0)]), context) == [
        reply.body for reply in Worker(folder, "image_classifier_handler.py", batch_size=2).send(picture(255, 0, 0))
    ]


def test_threads_that_decode_have_one_thread_each_and_torch_keeps_its_own() -> None:
    program = """
import torch
from marsmith_handler import devices
pool = devices.set_threads(devices.Placement(torch.device("cpu"), threads=3, decode_threads=2))
print(torch.get_num_threads(), *pool.map(lambda _: torch.get_num_threads(), range(4)))
"""
    handlers = REPOSITORY / "handlers"
    done = subprocess.run([sys.executable, "-c", program], cwd=handlers, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "1", "1", "1", "1"], done.stderr
