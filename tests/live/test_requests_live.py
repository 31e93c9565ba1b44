"""Requests that a real TorchServe hands to the handlers that we ship: huge ones, and those that curl -d cuts up."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from marsmith.build.pack import PackRequest, pack
from marsmith.client import Client, tokens
from marsmith.run_state import RunState
from support.handler_fixtures import ChannelMeans, Doubling, write_model
from support.host_server import SERVERS, serving
from support.huge_requests import SIZE, filled
from support.live_server import make_project
from support.long_tests import mostly_long
from support.pictures import picture
from support.projects import REPOSITORY
from support.raw_calls import Answer, call
from support.sounds import Loudness, noise, wav
from support.text_models import LABELS, WORDS, BagOfWords

pytestmark = pytest.mark.tensors

BATCH = 3
JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"
MEBIBYTE = 1 << 20
# Room for the head of a request in the largest that the server takes.
LARGEST = SIZE - 4096


def archive(
    store: Path, name: str, module: torch.nn.Module, extra: dict[str, Any], *, batch: int = 1, **handler: Any
) -> None:
    """Pack one of our handlers with a small model, as a user does."""
    work = store.parent / "work" / name
    write_model(work, module)
    for file, content in extra.items():
        (work / file).write_text(json.dumps(content), encoding="utf-8")
    config = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": batch,
        # The batch leaves when it is full, long before that.
        "maxBatchDelay": 20_000 if batch > 1 else 1,
        "responseTimeout": 60,
        "startupTimeout": 240,
        "maxRetryTimeoutInSec": 10,
        "handler": {"warm_up_s": 0.001, **handler},
    }
    (work / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    handler_file = REPOSITORY / "handlers" / f"{HANDLERS[name]}_handler.py"
    pack(
        PackRequest(
            model_name=name,
            version="1.0",
            handler=str(handler_file),
            serialized_file=work / "model.pt",
            config_file=work / "model-config.yaml",
            extra_files=",".join(map(str, (work / file for file in extra))),
            export_path=store,
        )
    )


HANDLERS = {
    "tensors": "tensor",
    "crowd": "tensor",
    "pictures": "image_classifier",
    "texts": "text_classifier",
    "sounds": "voice_activity",
}


@pytest.fixture(scope="module", params=mostly_long("host", SERVERS, ["TorchServe"]))
def state(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunState]:
    project = make_project(tmp_path_factory.mktemp("requests") / "project")
    store, labels = project.model_store, {"0": "red", "1": "green", "2": "blue"}
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    archive(store, "tensors", Doubling(), {})
    archive(store, "crowd", Doubling(), {}, batch=BATCH)
    archive(store, "pictures", ChannelMeans(), {"index_to_name.json": labels}, resize=16, crop=[16, 16])
    words = {"index_to_name.json": LABELS, "vocabulary.json": vocabulary}
    archive(store, "texts", BagOfWords(), words, vocabulary="vocabulary.json")
    archive(store, "sounds", Loudness(), {})
    with serving(request.param, project) as state:
        yield state


def post(state: RunState, model: str, body: bytes, content_type: str) -> Answer:
    token = tokens.token(state, "inference")
    return call(
        state.inference, "POST", f"/predictions/{model}", token, body=body, headers={"Content-Type": content_type}
    )


def worker_of(state: RunState, model: str) -> tuple[int, int]:
    """Return the process of the model's worker, and the most memory that it ever took, in bytes."""
    with Client(state.inference, state.management, key_file=state.key_file) as client:
        (pid,) = [worker.pid for version in client.describe(model) for worker in version.workers]
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return pid, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


HUGE = {
    "a list of empty texts": filled('"",', size=LARGEST),
    "a list of empty lists": filled("[],", size=LARGEST),
    "a list of objects": filled('{"a":1},', size=LARGEST),
    "KServe v1": filled('"",', '{"instances":[', "]}", size=LARGEST),
    "KServe v2": filled('"",', '{"inputs":[{"datatype":"BYTES","data":[', "]}]}", size=LARGEST),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_request_is_refused_and_its_neighbours_in_the_batch_are_answered(state: RunState, name: str) -> None:
    before = worker_of(state, "crowd")
    bodies = [b"[1, 2]", HUGE[name], b"[3, 4]"]
    with ThreadPoolExecutor(BATCH) as pool:
        first, huge, last = pool.map(lambda body: post(state, "crowd", body, JSON_TYPE), bodies)
    assert (first.status, json.loads(first.body)) == (200, [2.0, 4.0])
    assert (last.status, json.loads(last.body)) == (200, [6.0, 8.0])
    assert (huge.status, json.loads(huge.body)["type"]) == (413, "ContentTooLarge")
    after = worker_of(state, "crowd")
    assert after[0] == before[0]
    # TorchServe's own copies of the body are in it.
    assert after[1] - before[1] < 200 * MEBIBYTE


def test_a_form_of_a_million_fields_is_refused_and_the_worker_lives(state: RunState) -> None:
    before = worker_of(state, "texts")
    huge = post(state, "texts", b"data=&" * 1_000_000 + b"data=good", FORM_TYPE)
    assert (huge.status, json.loads(huge.body)["type"]) == (413, "ContentTooLarge")
    after = worker_of(state, "texts")
    assert after[0] == before[0]
    # TorchServe's worker makes 300 MB of objects of them.
    assert after[1] - before[1] < 50 * MEBIBYTE
    assert post(state, "texts", b"data=good+film", FORM_TYPE).status == 200


TEXTS = [
    "A good film.",
    "good=bad film",
    "a=1&b=good%20film",
    "body good + film?",
    "data",
    '{"data": "good"}',
    "[1, 2]",
]


@pytest.mark.parametrize("model", ["texts", "tensors", "pictures", "sounds"])
@pytest.mark.parametrize("text", TEXTS)
def test_what_curl_sends_as_a_form_is_refused_with_the_call_that_works(state: RunState, model: str, text: str) -> None:
    refused = post(state, model, text.encode(), FORM_TYPE)
    assert refused.status == 415
    assert "--data-binary" in json.loads(refused.body)["message"]


@pytest.mark.parametrize("text", [text for text in TEXTS if "good" in text and not text.startswith("{")])
def test_a_text_that_is_sent_as_text_is_read_whole(state: RunState, text: str) -> None:
    address = f"{state.inference}/predictions/texts"
    token = f"Authorization: Bearer {tokens.token(state, 'inference')}"
    line = ["curl", "-sS", "-H", token, "-H", "Content-Type: text/plain", "--data-binary", text, address]
    answer = json.loads(subprocess.run(line, capture_output=True, check=True, text=True).stdout)
    assert list(answer) == list(LABELS.values())
    as_json = post(state, "texts", json.dumps({"data": text}).encode(), JSON_TYPE)
    assert json.loads(as_json.body) == pytest.approx(answer, abs=1e-6)


def test_a_form_that_is_meant_as_one_is_taken(state: RunState) -> None:
    form = post(state, "texts", b"data=good+film", FORM_TYPE)
    whole = post(state, "texts", b"good film", "text/plain")
    assert (form.status, form.body) == (200, whole.body)


def test_each_handler_takes_what_is_its_own(state: RunState) -> None:
    answers = {
        "pictures": post(state, "pictures", picture(200, 0, 0), "image/png"),
        "sounds": post(state, "sounds", wav(noise(1, 0.3)), "audio/wav"),
        "tensors": post(state, "tensors", b'{"instances": [[1, 2], [3]]}', JSON_TYPE),
    }
    assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(answers, 200)
    assert json.loads(answers["tensors"].body) == {"predictions": [[2.0, 4.0], [6.0]]}
