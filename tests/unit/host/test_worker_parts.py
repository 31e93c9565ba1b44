"""What a worker makes of requests and of a handler's measurements, without a process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from marsmith.host.measured import Measured
from marsmith.host.worker.fields import TooManyFieldsError, fields_of
from marsmith.host.worker.metrics import WorkerMetrics

FORM = "application/x-www-form-urlencoded"


def asked(content_type: str | None = None, **more: Any) -> dict[str, Any]:
    return {"headers": {"X-One": "1"}, "type": content_type, "parts": None, "query": "", **more}


def test_a_body_is_decoded_by_its_type() -> None:
    data, headers = fields_of(asked("application/json"), [b'{"a": 1}'])
    assert data == {"body": {"a": 1}}
    assert headers == {"body": {"content-type": "application/json"}, "X-One": "1"}
    assert fields_of(asked("text/plain"), [b"words"])[0] == {"body": "words"}
    assert fields_of(asked("image/png"), [b"\x89"])[0] == {"body": bytearray(b"\x89")}


def test_a_query_and_the_parts_of_a_message_are_fields() -> None:
    assert fields_of(asked(query="a=1&b="), [b"x"])[0] == {
        "a": bytearray(b"1"),
        "b": bytearray(),
        "body": bytearray(b"x"),
    }
    assert fields_of(asked(parts=["data", "more"]), [b"x", b"y"])[0] == {
        "data": bytearray(b"x"),
        "more": bytearray(b"y"),
    }


@pytest.mark.parametrize(
    ("content_type", "body"),
    [(FORM, b"a=&" * 1001), ("multipart/form-data; boundary=X", b"--X\r\n" * 1001)],
)
def test_a_form_of_too_many_parts_is_refused_before_it_is_parsed(content_type: str, body: bytes) -> None:
    with pytest.raises(TooManyFieldsError):
        fields_of(asked(content_type), [body])


def test_measurements_reach_prometheus_under_their_names() -> None:
    metrics, measured = WorkerMetrics("m"), Measured()
    metrics.add_time("HandlerTime", 3.5, None, "ms")
    metrics.add_counter("seen", 2)
    metrics.add_metric("own", 1, "count", dimensions=[SimpleNamespace(name="Where", value='a "b"')])
    declared = metrics.cache["histogram"]["marsmith_decode_seconds"]
    declared.add_or_update(0.02, ["m", "1.0"])
    metrics.add_counter("not a name", 1)
    measured.take(metrics.take())
    assert metrics.take() == []
    text = measured.render()
    assert 'HandlerTime{ModelName="m",Level="Model",Hostname=' in text
    assert 'seen{ModelName="m",Level="Model",' in text
    assert r'Where="a \"b\""' in text
    assert 'marsmith_decode_seconds_bucket{ModelName="m",ModelVersion="1.0",' in text
    assert "not a name" not in text


def test_everything_that_is_rendered_is_a_sample() -> None:
    from marsmith.client.metrics import parse_exposition

    measured = Measured()
    measured.request("m", "1.0", 0.002, 0.001)
    measured.status(404)
    measured.take([["histogram", "marsmith_batch_items", 3, ["ModelName"], ["m"]], ["gauge", "odd", "text", [], []]])
    samples = {sample.name: sample.value for sample in parse_exposition(measured.render())}
    assert samples["ts_inference_requests_total"] == 1
    assert samples["ts_inference_latency_microseconds"] == pytest.approx(2000)
    assert samples["Requests4XX"] == 1
    assert samples["marsmith_batch_items_count"] == 1
    assert samples["marsmith_batch_items_sum"] == 3
