"""What the exporter says, from readings that tests give it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from marsmith import metric_names as names
from marsmith.client.metrics import CounterSample, parse_exposition
from marsmith.client.version_status import VersionStatus
from marsmith.errors import ClientError, NotRunningError
from marsmith.monitoring.exporter import page
from marsmith.monitoring.exporter.page import Page
from marsmith.monitoring.exporter.readiness import unhealthy, unready
from marsmith.monitoring.exporter.samples import Sample, exposition
from marsmith.monitoring.exporter.supervisor import SupervisorSource
from marsmith.monitoring.exporter.torchserve import TorchServeSource
from marsmith.monitoring.exporter.totals import Series, Totals
from marsmith.server.outlook import Look, Outlook
from support.states import status

READY = Look(answers=True, versions=(status("1.0", default=True), status("2.0", workers=0)), seen_s=1.0)
REQUESTS = Series(names.REQUESTS, ("echo", "1.0"))


def looking(*versions: VersionStatus) -> Outlook:
    return Outlook(replace(READY, versions=versions))


def ts(version: str, **values: float) -> list[CounterSample]:
    """Return what TorchServe would say of one version of ``echo``."""
    found = []
    for name, value in values.items():
        own = name.startswith("marsmith")
        labels = ("ModelName", "ModelVersion") if own else ("model_name", "model_version")
        found.append(CounterSample(name, value, dict(zip(labels, ("echo", version), strict=True))))
    return found


class Readings:
    """A metrics API that says these things one after the other."""

    def __init__(self, *readings: list[CounterSample] | None) -> None:
        self.left = list(readings)

    def __call__(self) -> Iterable[CounterSample]:
        reading = self.left.pop(0)
        if reading is None:
            raise ClientError("it does not answer")
        return reading


def values(samples: Iterable[Sample]) -> dict[tuple[str, ...], float]:
    return {(sample.metric.name + sample.suffix, *sample.labels): sample.value for sample in samples}


@given(st.lists(st.lists(st.integers(0, 50), max_size=5), max_size=6))
def test_totals_never_fall_and_miss_nothing_over_restarts(lives: list[list[int]]) -> None:
    totals, expected, last = Totals(), 0, 0.0
    for life in lives:
        count = 0
        for growth in life:
            count += growth
            before = totals.of(REQUESTS)
            totals.grow({("requests", "echo", "1.0", ""): count}, lambda key: (REQUESTS, 1.0))
            assert totals.of(REQUESTS) >= before
            # A process that was restarted and has counted as much again cannot be told from one that went on.
            expected += int(count - last) if count >= last else count
            last = count
    assert totals.of(REQUESTS) == expected


def test_requests_that_name_no_version_count_for_the_default_one_of_their_time() -> None:
    one, two = status("1.0", default=True), status("2.0")
    outlook = looking(one, two)
    source = TorchServeSource(
        outlook,
        Readings(
            ts("default", ts_inference_requests_total=5),
            ts("default", ts_inference_requests_total=7) + ts("2.0", ts_inference_requests_total=1),
            ts("default", ts_inference_requests_total=10) + ts("2.0", ts_inference_requests_total=1),
        ),
    )
    first = values(source.collect())
    assert first["marsmith_requests_total", "echo", "1.0"] == 2, "since the exporter began"
    assert first["marsmith_requests_total", "echo", "2.0"] == 1
    outlook.look = replace(outlook.look, versions=(replace(one, default=False), replace(two, default=True)))
    second = values(source.collect())
    assert second["marsmith_requests_total", "echo", "1.0"] == 2
    assert second["marsmith_requests_total", "echo", "2.0"] == 4
    outlook.look = replace(outlook.look, versions=())
    source._read = Readings([])
    assert list(source.collect()) == [], "nothing is registered any more"


def test_errors_of_clients_are_those_that_are_no_failures_and_never_fall() -> None:
    def counted(errors: int, failures: int) -> list[CounterSample]:
        batches = {"marsmith_batch_items_count": 9.0, "marsmith_item_errors_total": errors}
        return ts("1.0", **batches, marsmith_item_failures_total=failures, ts_inference_requests_total=9)

    # The second reading lies between the two lines of a batch with one failure.
    source = TorchServeSource(
        looking(status("1.0", default=True)), Readings(None, counted(3, 1), counted(4, 1), counted(4, 2))
    )
    found = [values(source.collect()) for _ in range(3)]
    assert [each["marsmith_request_errors_total", "echo", "1.0", "server"] for each in found] == [1, 1, 2]
    assert [each["marsmith_request_errors_total", "echo", "1.0", "client"] for each in found] == [2, 3, 3]


def test_counters_begin_at_zero_but_not_those_that_a_foreign_handler_does_not_count() -> None:
    fresh = TorchServeSource(looking(status("1.0", default=True)), Readings(None, []))
    found = values(fresh.collect())
    assert found["marsmith_requests_total", "echo", "1.0"] == 0
    assert found["marsmith_request_errors_total", "echo", "1.0", "server"] == 0
    foreign = TorchServeSource(
        looking(status("1.0", default=True)), Readings(None, ts("1.0", ts_inference_requests_total=3))
    )
    assert ("marsmith_request_errors_total", "echo", "1.0", "server") not in values(foreign.collect())


def test_the_text_is_read_back_by_prometheus_with_types_and_help_in_both_formats() -> None:
    samples = [
        Sample(names.REQUESTS, ("echo", '1"\n\\'), 3),
        Sample(names.STAGE_SECONDS, ("echo", "1.0", "infer"), 1, "_bucket", "0.5"),
        Sample(names.STAGE_SECONDS, ("echo", "1.0", "infer"), 2, "_bucket", "+Inf"),
        Sample(names.STAGE_SECONDS, ("echo", "1.0", "infer"), 2, "_count"),
        Sample(names.STAGE_SECONDS, ("echo", "1.0", "infer"), 2.5, "_sum"),
        Sample(names.UP, (), 1),
    ]
    text, content_type = exposition(samples)
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert families["marsmith_requests"].type == "counter"
    assert families["marsmith_requests"].documentation == names.REQUESTS.help
    assert families["marsmith_stage_duration_seconds"].type == "histogram"
    assert parse_exposition(text.decode())[1].labels == {"model": "echo", "version": '1"\n\\'}
    text, content_type = exposition(samples, "application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_a_sample_has_the_labels_of_its_declaration() -> None:
    with pytest.raises(ValueError, match="marsmith_requests_total has the labels"):
        Sample(names.REQUESTS, ("echo",), 1)


FULL = replace(status("1.0", default=True), queue_remaining=0, queue_pending=100)


@pytest.mark.parametrize(
    ("look", "left_out", "stopping", "reason"),
    [
        (READY, [], False, None),
        (READY, ["echo-3.0.mar"], False, None),
        (READY, [], True, "the server is being stopped"),
        (Look(), [], False, "the server is starting"),
        (replace(READY, answers=False), [], False, "TorchServe does not answer"),
        (replace(READY, versions=()), [], False, "no model is registered"),
        (READY, ["other-1.0.mar"], False, "other-1.0.mar is left out"),
        (
            replace(READY, versions=(status("1.0", default=True, ready=False),)),
            [],
            False,
            "echo:1.0 has no ready worker",
        ),
        (replace(READY, versions=(FULL,)), [], False, "the job queue of echo:1.0 is full (100 requests)"),
    ],
)
def test_ready_means_that_each_model_can_take_a_request(
    look: Look, left_out: list[str], stopping: bool, reason: str | None
) -> None:
    assert unready(look, left_out, stopping=stopping) == reason


def test_a_full_queue_is_unready_and_healthy_so_that_no_platform_restarts_it() -> None:
    assert unhealthy(replace(READY, versions=(FULL,))) is None
    assert unhealthy(replace(READY, versions=(status("1.0", default=True, ready=False),))) is not None


class Hanging:
    """A source that says something once, and then hangs or fails."""

    def __init__(self) -> None:
        self.asked, self.release = 0, threading.Event()

    def collect(self) -> Iterable[Sample]:
        self.asked += 1
        if self.asked == 2:
            raise NotRunningError("it has gone")
        if self.asked == 3:
            self.release.wait()
        return [Sample(names.QUEUE_SECONDS, ("echo", "1.0"), 7)]


def test_a_source_that_fails_or_hangs_gives_its_last_values_and_the_others_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page, "WAIT_S", 0.1)
    told: list[str] = []
    source = Hanging()
    found = Page(SupervisorSource(Outlook(READY), lambda: None), [source], told.append)

    async def texts() -> list[bytes]:
        texts = [(await found.text(""))[0] for _ in range(4)]
        source.release.set()
        return texts

    for text in asyncio.run(texts()):
        assert b'marsmith_queue_seconds_total{model="echo",version="1.0"} 7.0' in text
        assert b"marsmith_up 1.0" in text
    assert source.asked == 3, "one that hangs is not asked again meanwhile"
    assert told == ["it has gone"]
