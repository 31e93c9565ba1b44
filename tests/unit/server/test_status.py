"""What a running server is said to do: the exposition of its metrics, and the rates and means made of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.client.metrics import (
    Counters,
    CounterSample,
    Traffic,
    counters,
    is_later,
    parse_exposition,
    render_exposition,
    traffic,
)
from marsmith.errors import FormatError

# As TorchServe 0.12.0 printed it after three requests that named no version and two that named 1.0.
PRINTED = """\
# HELP Requests2XX Torchserve prometheus counter metric with unit: Count
# TYPE Requests2XX counter
Requests2XX{Level="Host",Hostname="vm",} 122.0
ts_inference_requests_total{model_name="echo",model_version="1.0",hostname="vm",} 2.0
ts_inference_requests_total{model_name="echo",model_version="default",hostname="vm",} 3.0
ts_inference_latency_microseconds{model_name="echo",model_version="1.0",hostname="vm",} 2385.5
ts_inference_latency_microseconds{model_name="echo",model_version="default",hostname="vm",} 12000.5
ts_queue_latency_microseconds{model_name="echo",model_version="1.0",hostname="vm",} 130.0
marsmith_infer_seconds_bucket{ModelName="echo",ModelVersion="2.0",Hostname="vm",le="+Inf",} 4.0
marsmith_infer_seconds_count{ModelName="echo",ModelVersion="2.0",Hostname="vm",} 4.0
marsmith_infer_seconds_sum{ModelName="echo",ModelVersion="2.0",Hostname="vm",} 0.02
"""
# Prometheus keeps names that begin with two underscores for itself.
label_names = st.from_regex(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
samples = st.builds(
    CounterSample,
    st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", fullmatch=True),
    st.floats(allow_nan=False),
    st.dictionaries(label_names, texts, max_size=3),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(samples, max_size=4))
def test_samples_are_parsed_back(listed: list[CounterSample]) -> None:
    assert parse_exposition(render_exposition(listed)) == listed


def test_the_exposition_of_torchserve_is_read_with_its_last_comma() -> None:
    parsed = parse_exposition(PRINTED)
    assert len(parsed) == 9
    assert parsed[1] == CounterSample(
        "ts_inference_requests_total", 2.0, {"model_name": "echo", "model_version": "1.0", "hostname": "vm"}
    )


def test_numbers_that_are_none_and_times_are_read() -> None:
    found = parse_exposition('a NaN\nb{x="}\\"\\n"} +Inf 1700000000\n')
    assert math.isnan(found[0].value)
    assert found[1] == CounterSample("b", math.inf, {"x": '}"\n'})


def test_a_counter_keeps_the_name_that_it_is_printed_with() -> None:
    found = parse_exposition("# HELP b\n# TYPE a counter\na 1\n# TYPE b_total counter\nb_total 2\n# TYPE c histogram\n")
    assert found == [CounterSample("a", 1.0), CounterSample("b_total", 2.0)]


@pytest.mark.parametrize("line", ["a", "a one", "a{b=c} 1", 'a{b="c} 1', "1a 1"])
def test_every_line_that_is_no_sample_is_named(line: str) -> None:
    with pytest.raises(FormatError, match="line 2: "):
        parse_exposition(f"a 1\n{line}\n")


def test_requests_that_name_no_version_count_for_the_default_one() -> None:
    now = counters(parse_exposition(PRINTED), at=10.0)
    assert traffic(("echo", "1.0"), is_default=False, now=now).requests_total == 2
    default = traffic(("echo", "2.0"), is_default=True, now=now)
    assert default.requests_total == 3
    assert default.latency_ms == pytest.approx(12000.5 / 1000 / 3)
    assert default.infer_ms == pytest.approx(5.0)
    assert default.requests_per_second is None
    assert traffic(("other", "1.0"), is_default=True, now=now) == Traffic()


def test_rates_and_means_are_those_between_two_looks() -> None:
    before = counters(parse_exposition(PRINTED), at=10.0)
    later = PRINTED.replace('"1.0",hostname="vm",} 2.0', '"1.0",hostname="vm",} 12.0').replace("2385.5", "22385.5")
    now = counters(parse_exposition(later), at=15.0)
    assert is_later(now, before)
    found = traffic(("echo", "1.0"), is_default=False, now=now, before=before)
    assert (found.requests_total, found.requests_per_second) == (12, 2.0)
    assert found.latency_ms == pytest.approx(2.0)
    assert traffic(("echo", "2.0"), is_default=True, now=now, before=before).latency_ms is None


def test_a_server_that_was_started_again_counts_from_zero() -> None:
    before = counters(parse_exposition(PRINTED), at=10.0)
    assert not is_later(Counters(15.0), before)
