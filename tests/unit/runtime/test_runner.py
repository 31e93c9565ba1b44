"""The runner, with TorchServe's real worker: small archives in, replies out."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from marsmith.cli import main
from marsmith.errors import ArchiveError, HandlerError, MissingDependencyError, UsageError
from marsmith.runtime.frontend import FormError, parse_multipart, parse_urlencoded
from marsmith.runtime.profile import Profile
from marsmith.runtime.runner import Request, Runner, RunnerReply
from marsmith.runtime.traceback import handler_traceback, summary
from marsmith.runtime.worker import worker_environment
from marsmith.runtime.worker_protocol import Parameter, WorkerMetric
from support.live_server import is_alive, until
from support.runner_archives import CONFIG, make_archive


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(make_archive(tmp_path_factory.mktemp("echo"))) as runner:
        yield runner


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    config = CONFIG.replace("responseTimeout: 60", "responseTimeout: 3")
    with Runner(make_archive(tmp_path_factory.mktemp("impatient"), config=config)) as runner:
        yield runner


def do(what: str, body: bytes = b"x") -> Request:
    return Request(body, headers={"X-Do": what})


def error_body(code: int, message: str) -> dict[str, object]:
    return {"code": code, "type": "InternalServerException", "message": message}


def load(folder: Path, handler: str, **options: Any) -> HandlerError:
    """Return the error that loading ``handler`` gives."""
    with pytest.raises(HandlerError) as caught, Runner(make_archive(folder, handler, **options)):
        pass
    return caught.value


# What a handler gets ------------------------------------------------------------------------------------------------


def test_a_batch_reaches_the_handler_as_one_and_replies_come_in_order(tmp_path: Path) -> None:
    handler = (
        "def handle(data, context):\n"
        "    return data and [f'{bytes(d[\"body\"]).decode()} of {len(data)}' for d in data]\n"
    )
    with Runner(make_archive(tmp_path, handler)) as runner:
        assert runner.batch_size == 4
        replies = runner.run([Request(b"a"), Request(b"b"), Request(b"c")])
    assert [reply.body for reply in replies] == [b"a of 3", b"b of 3", b"c of 3"]


def test_the_context_is_what_a_server_gives(tmp_path: Path) -> None:
    handler = (
        "import os, sys\n"
        "def handle(data, context):\n"
        "    return data and [{'properties': context.system_properties, 'config': context.model_yaml_config,\n"
        "        'manifest': context.manifest, 'here': os.getcwd(), 'path': sys.path,\n"
        "        'decode': os.environ['TS_DECODE_INPUT_REQUEST'], 'id': context.get_request_id(0)}]\n"
    )
    with Runner(make_archive(tmp_path / "m", handler), batch_size=2) as runner:
        (reply,) = runner.run([Request(b"")])
    seen = reply.json()
    folder = str((tmp_path / "m").resolve())
    assert seen["properties"]["model_dir"] == seen["here"] == folder
    assert (seen["properties"]["batch_size"], seen["properties"]["gpu_id"]) == (2, None)
    assert seen["config"]["batchSize"] == 4
    assert seen["manifest"]["model"]["modelName"] == "tiny"
    assert folder in seen["path"]
    assert seen["decode"] == "true"
    assert seen["id"] == reply.headers["x-request-id"]


def test_json_and_text_are_decoded_by_exactly_their_content_types(echo: Runner) -> None:
    kinds = ("application/json", "application/json; charset=utf-8", "application/JSON", None)
    replies = echo.run([Request(b'{"a": 1}', kind) for kind in kinds])
    raw = ["bytearray", b'{"a": 1}'.hex()]
    assert [reply.json()["data"]["body"] for reply in replies] == [["dict", {"a": 1}], ["dict", {"a": 1}], raw, raw]
    (text,) = echo.run([Request("é".encode(), "text/plain")])
    assert text.json()["data"]["body"] == ["str", "é"]


def test_headers_keep_their_names_and_the_frontends_own_come_last(echo: Runner) -> None:
    (reply,) = echo.run([Request(b"xyz", "image/png", {"X-One": "1", "x-two": "2", "explain": "True"})])
    assert reply.json()["headers"] == {
        "Content-Length": "3",
        "Content-Type": "image/png",
        "X-One": "1",
        "x-two": "2",
        "explain": "False",
        "url_path": "",
        "body": {"content-type": "image/png"},
    }


def test_a_form_is_taken_apart_into_its_fields(echo: Runner) -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="data"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        b"\xff\xd8\r\n--Bx\r\n\r\n--B\r\nContent-Disposition: form-data; name=text\r\n\r\nhello\r\n--B--\r\n"
    )
    (reply,) = echo.run([Request(body, "multipart/form-data; boundary=B")])
    assert reply.json()["data"] == {
        "data": ["bytearray", b"\xff\xd8\r\n--Bx\r\n".hex()],
        "text": ["bytearray", b"hello".hex()],
    }


def test_a_form_that_the_frontend_refuses_does_not_touch_its_neighbours(echo: Runner) -> None:
    bad, good = echo.run([Request(b"a=%zz", "application/x-www-form-urlencoded"), Request(b"fine")])
    assert (bad.status, bad.json()["type"]) == (500, "ErrorDataDecoderException")
    assert good.status == 200


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", []),
        (b"garbage", []),
        (b"before\r\n--B\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--B--\r\n", []),
        (b"--B\r\nContent-Disposition: form-data; name=a\r\n\r\n1", []),
        (b"--B\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--B--\r\n", [Parameter("a", b"")]),
        (b"--B\nContent-Disposition: form-data; name=a\n\n1\n--B--\n", [Parameter("a", b"1")]),
        (b"--B\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--B--\r\nafter", [Parameter("a", b"1")]),
    ],
)
def test_odd_multipart_bodies_give_what_netty_makes_of_them(body: bytes, fields: list[Parameter]) -> None:
    assert parse_multipart(body, b"B") == fields


def test_a_form_field_without_a_name_is_refused() -> None:
    with pytest.raises(FormError, match="empty name"):
        parse_urlencoded(b"a=1&&b=2")
    with pytest.raises(FormError, match="no name"):
        parse_multipart(b"--B\r\n\r\n1\r\n--B--\r\n", b"B")


# What a client gets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        ("raise", 503, "Prediction failed"),
        ("memory", 507, "Out of resources"),
        ("cuda", 507, "Out of resources"),
        ("prediction", 418, "own words & <more>"),
        ("wrong length", 503, "number of batch response mismatched"),
        ("wrong type", 503, "Invalid model predict output"),
        ("unserialisable", 503, "Unsupported model output data type."),
    ],
)
def test_what_breaks_a_handler_fails_the_whole_batch(echo: Runner, what: str, status: int, message: str) -> None:
    replies = echo.run([do("text"), do(what)])
    assert [reply.status for reply in replies] == [status, status]
    assert [reply.json() for reply in replies] == [error_body(status, message)] * 2
    assert {reply.content_type for reply in replies} == {"application/json"}


def test_a_status_of_one_item_leaves_the_others_alone(echo: Runner) -> None:
    assert [reply.status for reply in echo.run([do("text"), do("status"), do("text")])] == [200, 422, 200]


def test_headers_and_content_type_that_the_handler_sets_arrive(echo: Runner) -> None:
    (reply,) = echo.run([do("headers")])
    assert reply.content_type == "text/plain; charset=utf-8"
    assert reply.headers["X-Mine"] == "seven"


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("bytes", bytes(range(256))),
        ("bytearray", b"\x00\xff"),
        ("empty", b""),
        ("none", b"null"),
        ("text", "ünïcode".encode()),
        ("number", b"3.25"),
        ("keys", b'{\n  "1": [\n    1,\n    2.5,\n    null,\n    NaN,\n    "\\u00e9"\n  ]\n}'),
        ("just fits", b"x" * 6_553_500),
        ("stream", b"part one part two the end"),
    ],
)
def test_each_kind_of_output_becomes_the_body_that_a_server_makes_of_it(echo: Runner, what: str, body: bytes) -> None:
    (reply,) = echo.run([do(what)])
    assert (reply.status, reply.content_type, reply.body) == (200, "", body)


@pytest.mark.tensors
def test_a_tensor_output_is_a_saved_tensor(echo: Runner) -> None:
    import torch

    (reply,) = echo.run([do("tensor")])
    assert torch.equal(torch.load(io.BytesIO(reply.body)), torch.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("exit", 500, "ended with status 3"),
        ("killed", 507, "ended with status -9"),
        ("too large", 500, "6,553,501 bytes"),
        ("sleep", 500, "response timeout of 3 s"),
        ("non-ascii type", 500, ""),
    ],
)
def test_a_worker_that_dies_fails_its_batch_and_the_next_batch_gets_a_new_one(
    request: pytest.FixtureRequest, what: str, status: int, reason: str
) -> None:
    runner: Runner = request.getfixturevalue("impatient" if what == "sleep" else "echo")
    replies = runner.run([do(what), do("text")])
    assert [(reply.status, reply.json()) for reply in replies] == [(status, error_body(status, "Worker died."))] * 2
    assert runner.last_failure is not None
    assert reason in runner.last_failure
    assert runner.run([do("number")])[0].body == b"3.25"
    assert runner.last_failure is None


def test_more_requests_than_the_batch_size_are_refused_and_none_give_none(echo: Runner) -> None:
    with pytest.raises(UsageError, match="5 requests in a batch of at most 4"):
        echo.run([Request(b"")] * 5)
    assert echo.run([]) == []


# Tracebacks and logs ------------------------------------------------------------------------------------------------


def test_the_traceback_of_a_failed_batch_starts_at_the_handlers_own_line(echo: Runner) -> None:
    echo.run([do("raise")])
    lines = str(echo.last_traceback).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith('  File "tiny_handler.py", line ')
    assert lines[-1] == "ValueError: bad thing"
    echo.run([do("text")])
    assert echo.last_traceback is None


def test_a_load_that_fails_names_the_exception_and_shows_the_handlers_lines(tmp_path: Path) -> None:
    handler = (
        "class H:\n"
        "    def initialize(self, context):\n        raise KeyError('missing')\n"
        "    def handle(self, d, c):\n        return d\n"
    )
    error = load(tmp_path, handler)
    assert "'tiny_handler.py' does not load: KeyError: 'missing'" in error.message
    assert 'File "tiny_handler.py", line 3, in initialize' in error.message
    assert "model_service_worker.py" not in error.message


def test_a_runtime_error_at_load_is_explained_too(tmp_path: Path) -> None:
    handler = "def handle(data, context):\n    if data is None:\n        raise RuntimeError('two\\nlines')\n"
    assert "RuntimeError: two\nlines" in load(tmp_path, handler).message


def test_a_failed_import_shows_the_real_error_and_not_torchserves_second_one(tmp_path: Path) -> None:
    error = load(tmp_path, "import package_that_is_not_there\n")
    assert "No module named 'package_that_is_not_there'" in error.message
    assert "ts.torch_handler" not in error.message
    assert 'File "tiny_handler.py", line 1' in error.message


def test_a_syntax_error_is_shown_at_its_line(tmp_path: Path) -> None:
    error = load(tmp_path, "def handle(data, context):\n    return (\n")
    assert 'File "tiny_handler.py", line 2' in error.message
    assert "SyntaxError" in error.message


def test_a_handler_that_is_nowhere_is_named(tmp_path: Path) -> None:
    error = load(tmp_path, "", entry_point="image_clasifier")
    assert error.message.startswith("the handler 'image_clasifier' is neither a file in")


def test_a_process_that_ends_at_load_shows_what_it_printed_last(tmp_path: Path) -> None:
    error = load(tmp_path, "import os\nprint('last words')\nos._exit(4)\n")
    assert "last words" in error.message


def test_a_load_that_hangs_ends_with_the_startup_timeout(tmp_path: Path) -> None:
    config = CONFIG.replace("startupTimeout: 60", "startupTimeout: 1")
    error = load(tmp_path, "import time\ntime.sleep(60)\n", config=config)
    assert "did not load within 1 s" in error.message


def test_what_the_handler_prints_reaches_the_log_even_when_it_is_a_lot(tmp_path: Path) -> None:
    handler = (
        "def handle(data, context):\n    for i in range(20000):\n        print('line', i)\n    return data and ['ok']\n"
    )
    lines: list[str] = []
    with Runner(make_archive(tmp_path, handler), on_log=lines.append) as runner:
        lines.clear()
        assert runner.run([Request(b"")])[0].body == b"ok"
    assert [line for line in lines if line.startswith("line ")] == [f"line {i}" for i in range(20000)]


def test_a_chain_of_causes_is_kept_with_the_words_between_them() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "/m/h.py", line 1, in f',
        "    a()",
        "KeyError: 'a'",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        '  File "/ts/service.py", line 9, in predict',
        '  File "/m/h.py", line 2, in g',
        "    b()",
        "ValueError: b",
        "and more of it",
        "[METRICS]x",
    ]
    text = str(handler_traceback(lines, Path("/m")))
    assert text == "\n".join([*lines[:3], *lines[3:8], *lines[9:13], ""]).replace("/m/", "")
    assert summary(text) == "ValueError: b"


# The process --------------------------------------------------------------------------------------------------------


def test_the_worker_and_what_it_started_are_gone_after_the_block_even_when_it_raised(tmp_path: Path) -> None:
    handler = (
        "import os, subprocess\n"
        "def handle(data, context):\n"
        "    return data and [[os.getpid(), subprocess.Popen(['sleep', '600']).pid]]\n"
    )
    pids: list[int] = []

    def run_and_raise() -> None:
        with Runner(make_archive(tmp_path, handler)) as runner:
            pids.extend(runner.run([Request(b"")])[0].json())
            assert all(psutil.pid_exists(pid) for pid in pids)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_and_raise()
    # A signal takes a moment to end a process, also one that cannot be ignored.
    until(lambda: not any(is_alive(pid) for pid in pids))


def test_nothing_stays_behind_in_the_archives_folder_or_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    archive = make_archive(tmp_path / "m")
    before = sorted(archive.rglob("*"))
    with Runner(archive) as runner:
        runner.run([Request(b"")])
    assert sorted(archive.rglob("*")) == before
    assert list(temporary.iterdir()) == []


def test_a_mar_and_a_tar_gz_run_like_their_folder(tmp_path: Path) -> None:
    import tarfile

    folder = make_archive(tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m.mar", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(folder, "m")
    for packed in ("m.mar", "m.tar.gz"):
        with Runner(tmp_path / packed) as runner:
            assert runner.run([do("number")])[0].body == b"3.25"
            extracted = runner.folder
        assert not extracted.exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no archive"), Runner(tmp_path / "none.mar"):
        pass
    with pytest.raises(ArchiveError, match="MANIFEST"), Runner(tmp_path):
        pass


def test_without_torchserve_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "ts").is_dir()])
    monkeypatch.delitem(sys.modules, "ts", raising=False)
    with pytest.raises(MissingDependencyError) as caught, Runner(archive):
        pass
    assert caught.value.tip == "pip install 'marsmith[serve]'"


def test_the_workers_environment_has_the_python_path_that_the_frontend_makes() -> None:
    made = worker_environment(Path("/m"), "h.py", {"PYTHONPATH": "/p", "TS_DECODE_INPUT_REQUEST": "false"})
    assert made["PYTHONPATH"] == os.pathsep.join(["/p", "/m", ""])
    assert made["TS_DECODE_INPUT_REQUEST"] == "true"
    assert worker_environment(Path("/m"), "a/h.py:f", {})["PYTHONPATH"] == os.pathsep.join(["a", "/m", ""])


# Handlers of others, and the command line ---------------------------------------------------------------------------


@pytest.mark.tensors
def test_the_stock_image_classifier_runs(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image

    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 6))
    torch.jit.trace(model.eval(), torch.zeros(1, 3, 224, 224)).save(str(tmp_path / "model.pt"))
    manifest = {"modelName": "s", "modelVersion": "1.0", "serializedFile": "model.pt", "handler": "image_classifier"}
    labels = json.dumps({str(i): f"label {i}" for i in range(6)})
    files = {"MAR-INF/MANIFEST.json": json.dumps({"model": manifest}), "index_to_name.json": labels}
    photo = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(photo, "JPEG")
    with Runner(make_archive(tmp_path, files=files)) as runner:
        assert runner.batch_size == 1
        (good,) = runner.run([Request(photo.getvalue(), "image/jpeg")])
        (bad,) = runner.run([Request(b"no image", "image/jpeg")])
        traceback = str(runner.last_traceback)
    assert len(good.json()) == 5
    assert set(good.json()) <= set(json.loads(labels).values())
    assert bad.status == 503
    assert "UnidentifiedImageError" in traceback


def test_the_command_prints_replies_as_json_and_fails_when_one_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = make_archive(tmp_path / "m")
    (tmp_path / "a.txt").write_text("hello")
    options = [str(archive), str(tmp_path / "a.txt"), "--content-type", "text/plain", "--json"]
    assert main(["run", *options]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["status"], shown["body"]["data"]) == (200, {"body": ["str", "hello"]})

    assert main(["run", *options, "--header", "X-Do: raise"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["status"] == 503
    assert 'File "tiny_handler.py", line' in err
    assert "ValueError: bad thing" in err


def test_the_command_prints_the_body_alone_and_the_profile_beside_it(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    archive = make_archive(tmp_path / "m")
    (tmp_path / "a").write_bytes(b"")
    assert main(["run", str(archive), str(tmp_path / "a"), "--header", "X-Do:bytes", "--profile"]) == 0
    out, err = capsysbinary.readouterr()
    assert out == bytes(range(256))
    assert b"handler, batch" in err


def test_a_profile_adds_up_what_has_a_unit_of_time() -> None:
    profile = Profile()
    for batch_ms in (3.0, 5.0):
        decode = WorkerMetric("marsmith_decode_seconds", "Seconds", 0.002, {})
        profile.add(batch_ms, [decode, WorkerMetric("marsmith_batch_items", "Count", 4, {})])
    rows = [(row.stage, row.count, row.total_ms, row.mean_ms) for row in profile.rows()]
    assert rows == [("decode", 2, 4.0, 2.0), ("batch, with the worker's protocol", 2, 8.0, 4.0)]


def test_a_reply_that_is_no_json_says_so() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        RunnerReply(200, "", {}, b"<html>").json()
