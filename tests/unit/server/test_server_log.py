"""The cause of a worker's death, found in logs that a TorchServe 0.12.0 with four broken handlers has written."""

from __future__ import annotations

import json
import os
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.runtime.traceback import is_cut_off
from marsmith.server.log import JsonLog, LogLine, first_death, java_cause, parse_log, refused_loads
from support.projects import REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden" / "server_log"
WORKERS = parse_log((GOLDEN / "model_log.log").read_text())
FRONTEND = parse_log((GOLDEN / "ts_log.log").read_text())


def of(model: str, lines: list[LogLine]) -> list[LogLine]:
    return [line for line in lines if f"-{model}_1.0" in line.thread]


IMPORT = """\
Traceback (most recent call last):
  File "echo_handler.py", line 1, in <module>
    import not_installed_here
ModuleNotFoundError: No module named 'not_installed_here'
"""
RUNTIME = """\
Traceback (most recent call last):
  File "echo_handler.py", line 3, in initialize
    raise RuntimeError('cannot read the serialized file')
RuntimeError: cannot read the serialized file
"""


@pytest.mark.parametrize(("model", "worker", "expected"), [("imp", "9002", IMPORT), ("rt", "9001", RUNTIME)])
def test_the_traceback_is_the_handlers_own_and_not_torchserves_second_error(
    model: str, worker: str, expected: str
) -> None:
    death = first_death(of(model, WORKERS), of(model, FRONTEND))
    assert death is not None
    assert (death.worker, death.model, death.traceback) == (worker, f"{model}_1.0", expected)


def test_an_error_raised_from_another_is_shown_with_both() -> None:
    death = first_death(of("init", WORKERS), [])
    assert death is not None
    assert death.traceback is not None
    assert "KeyError: 'weights'" in death.traceback
    assert death.traceback.endswith("ValueError: the weights of this model are missing\n")


def test_a_worker_that_leaves_without_a_word_is_found_by_what_the_frontend_says() -> None:
    assert first_death(of("gone", WORKERS), []) is None
    death = first_death(of("gone", WORKERS), of("gone", FRONTEND))
    assert death is not None
    assert death.traceback is None
    assert death.last_lines[-1] == "leaving"


def test_of_several_dead_workers_the_first_is_named() -> None:
    death = first_death(WORKERS, FRONTEND)
    assert death is not None
    assert death.model == "rt_1.0"


def test_no_worker_is_dead_in_the_log_of_one_that_lives() -> None:
    born = [line for line in of("gone", WORKERS) if line.text != "leaving"][:8]
    assert born
    assert first_death(born, []) is None


def test_an_error_that_a_worker_survives_is_not_its_death() -> None:
    start = "2026-11-21T06:41:43,898 [INFO ] W-9000-echo_1.0-stdout MODEL_LOG - "
    printed = ("Invoking custom service failed.", "Traceback (most recent call last):", "TypeError: no")
    assert first_death(parse_log("\n".join(start + text for text in printed)), []) is None


def test_a_traceback_on_stderr_is_found_when_the_worker_cannot_even_start() -> None:
    head = "2026-11-21T06:44:13,5"
    printed = [
        f"{head}0{number} [WARN ] W-9000-echo_1.0-stderr MODEL_LOG - {text}"
        for number, text in enumerate(
            (
                "Traceback (most recent call last):",
                '  File "a.py", line 1',
                "ModuleNotFoundError: No module named 'yaml'",
            )
        )
    ]
    said = (
        f"{head}20 [ERROR] W-9000-echo_1.0 org.pytorch.serve.wlm.WorkerThread - Backend worker error\nat x.y(Z.java:1)"
    )
    death = first_death(parse_log("\n".join(printed)), parse_log(said))
    assert death is not None
    assert death.traceback is not None
    assert death.traceback.endswith("ModuleNotFoundError: No module named 'yaml'\n")


def test_names_with_dashes_and_underscores_are_kept_whole() -> None:
    line = "2026-11-21T06:44:13,500 [INFO ] W-9000-my-model_v2_1.0-rc1-stdout MODEL_LOG - Backend worker process died."
    death = first_death(parse_log(line), [])
    assert death is not None
    assert death.model == "my-model_v2_1.0-rc1"


def test_lines_without_a_head_belong_to_the_message_before_them() -> None:
    text = "cut off\n2026-11-21T06:44:13,500 [ERROR] main org.x.Y - it failed\n\tat a.b\n\tat c.d\n"
    assert parse_log(text) == [
        LogLine("2026-11-21T06:44:13,500", "ERROR", "main", "org.x.Y", "it failed\n\tat a.b\n\tat c.d")
    ]


def test_a_traceback_that_the_first_process_took_with_it_is_found_in_the_next() -> None:
    lines = of("imp", WORKERS)
    whole = [line for line in lines if line.time < "2026-11-21T06:44:17"]
    death = first_death([*whole[:7], *whole], of("imp", FRONTEND))
    assert death is not None
    assert death.traceback == IMPORT
    assert death.last_lines[-1].startswith("Connection accepted")


def test_a_traceback_that_the_first_process_took_the_end_of_with_it_is_found_whole_in_the_next() -> None:
    whole = [line for line in of("imp", WORKERS) if line.time < "2026-11-21T06:44:17"]
    texts = [line.text for line in whole]
    first_traceback, second_traceback = (at for at, text in enumerate(texts) if text.startswith("Traceback"))
    exception = texts.index("ModuleNotFoundError: No module named 'not_installed_here'")
    assert first_traceback < exception < second_traceback
    for end in (first_traceback + 1, exception, second_traceback + 1, len(whole) - 1):
        cut = first_death(whole[:end], of("imp", FRONTEND))
        assert cut is not None
        assert cut.is_cut_off
        death = first_death([*whole[:end], *whole], of("imp", FRONTEND))
        assert death is not None
        assert death.traceback == IMPORT
        assert not death.is_cut_off


def test_what_a_worker_raises_after_it_has_logged_its_error_is_not_the_cause() -> None:
    start = 'Traceback (most recent call last):\n  File "ts/model_service_worker.py", line 240, in run_server\n'
    assert is_cut_off(f"{start}RuntimeError: 500 - Unknown exception")
    assert not is_cut_off(f"{start}RuntimeError: the archive needs another package")


def through_a_json_log(*chunks: bytes) -> list[dict[str, str]]:
    """Send chunks through a JSON log and return the objects that come out, one a line."""
    reading, writing = os.pipe()
    with JsonLog(writing) as log:
        for chunk in chunks:
            os.write(log.source, chunk)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        return [json.loads(line) for line in file.read().splitlines()]


HEAD = b"2026-11-21T06:44:13,500 [ERROR] main org.x.Y - it failed\n"
WORKER_LINE = b"2026-11-21T06:44:13,600 [INFO ] W-9000-my-model_1.0-stdout MODEL_LOG - from the handler\n"


def test_each_message_becomes_one_json_object_with_its_source_and_a_time_with_a_zone() -> None:
    records = through_a_json_log(HEAD + b"java.lang.IllegalStateException: no\n\tat a.b\n", WORKER_LINE, b"printed\n")
    first, second, third = records
    assert first["message"] == "it failed\njava.lang.IllegalStateException: no\n\tat a.b"
    assert (first["level"], first["logger"], first["source"]) == ("ERROR", "org.x.Y", "frontend")
    when = datetime.fromisoformat(first["ts"])
    assert when.utcoffset() is not None
    assert when.replace(tzinfo=None) == datetime(2026, 11, 21, 6, 44, 13, 500_000)
    assert (second["source"], second["logger"], second["message"]) == (
        "W-9000-my-model_1.0",
        "MODEL_LOG",
        "from the handler",
    )
    assert (third["source"], third["logger"], third["message"]) == ("frontend", "console", "printed")


def test_a_line_cut_in_two_is_put_together_and_one_that_never_ends_is_not_lost() -> None:
    records = through_a_json_log(HEAD[:20], HEAD[20:], WORKER_LINE[:-1])
    assert [record["message"] for record in records] == ["it failed", "from the handler"]


def test_a_message_is_written_without_waiting_for_the_next() -> None:
    reading, writing = os.pipe()
    with JsonLog(writing) as log, os.fdopen(reading, "rb") as file:
        os.write(log.source, HEAD)
        assert json.loads(file.readline())["message"] == "it failed"
        log.tell("a word of its own", level="WARN", more=1)
        assert (
            json.loads(file.readline()).items() >= {"message": "a word of its own", "level": "WARN", "more": 1}.items()
        )
    os.close(writing)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=4))
def test_whatever_is_printed_every_line_is_json(chunks: list[bytes]) -> None:
    for record in through_a_json_log(*chunks):
        assert record.keys() >= {"ts", "level", "logger", "message", "source"}


REFUSED = """\
2026-11-27T23:28:32,072 [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: req-1.0.mar
org.pytorch.serve.archive.model.ModelException: Custom pip package installation failed for model req
\tat org.pytorch.serve.wlm.ModelManager.setupModelDependencies(ModelManager.java:378) ~[model-server.jar:?]
2026-11-27T23:28:33,072 [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: https://host/x.mar
org.pytorch.serve.archive.DownloadArchiveException: Failed to download archive from: https://host/x.mar
\tat org.pytorch.serve.archive.utils.ArchiveUtils.downloadArchive(ArchiveUtils.java:1) ~[model-server.jar:?]
Caused by: java.net.UnknownHostException: host
\tat java.base/java.net.Socket.connect(Socket.java:751)
2026-11-27T23:28:34,088 [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: bare.mar
2026-11-27T23:28:34,088 [INFO ] main org.pytorch.serve.ModelServer - Initialize Inference server
"""


def test_what_torchserve_refuses_is_named_with_the_line_that_says_why() -> None:
    assert refused_loads(parse_log(REFUSED)) == {
        "req-1.0.mar": "ModelException: Custom pip package installation failed for model req",
        "https://host/x.mar": "UnknownHostException: host",
        "bare.mar": "its log gives no reason",
    }
    assert refused_loads(FRONTEND) == {}


def test_the_first_death_is_told_apart_from_versions_of_no_interest_and_in_one_line() -> None:
    dead: set[str] = set()
    while death := first_death(WORKERS, FRONTEND, dead):
        assert death.model not in dead
        assert "\n" not in death.cause
        dead.add(death.model)
    assert len(dead) > 1


def test_the_exception_that_ended_java_is_found_among_what_it_printed() -> None:
    warning, stack = "WARNING: sun.reflect is not supported.\n", "\n\tat java.base/java.util.X.y(X.java:1)\n"
    assert java_cause(f"{warning}java.lang.ClassCastException: a Date{stack}") == "ClassCastException: a Date"
    assert java_cause(f'Exception in thread "main" java.lang.OutOfMemoryError: heap{stack}') == "OutOfMemoryError: heap"
    assert java_cause(warning) == ""
