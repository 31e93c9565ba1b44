"""The effective server config, and the committed one that it begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsmith.config.properties import ENCODING, Entry, as_mapping, parse_properties
from marsmith.config.server_config import addresses, effective_config, read_server_config, unknown_keys, uses_tokens
from marsmith.config.server_keys import KNOWN_KEYS
from marsmith.errors import ConfigError
from marsmith.project import Project
from support.projects import REPOSITORY

COMMITTED = Project(REPOSITORY)


def entries(**values: str) -> list[Entry]:
    return [Entry(key, value, line) for line, (key, value) in enumerate(values.items(), start=1)]


def test_the_committed_config_has_only_known_keys_once_each_with_a_reason_above() -> None:
    found = read_server_config(COMMITTED)
    assert unknown_keys(found) == []
    assert len({entry.key for entry in found}) == len(found)
    lines = COMMITTED.server_config.read_text(ENCODING).splitlines()
    assert [entry.key for entry in found if not lines[entry.line - 2].startswith("# ")] == []


def test_the_committed_config_is_closed_to_the_outside() -> None:
    config = effective_config(COMMITTED, read_server_config(COMMITTED), {})
    assert {endpoint.host for endpoint in addresses(config).all()} == {"127.0.0.1"}
    assert uses_tokens(config)
    assert "number_of_gpu" not in config


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_right_one() -> None:
    assert unknown_keys(entries(model_stor="x", load_models="all")) == [
        "line 1: unknown key 'model_stor'; did you mean 'model_store'?"
    ]


@pytest.mark.parametrize("key", sorted(KNOWN_KEYS))
def test_a_key_with_a_letter_missing_is_led_back_to_the_right_one(key: str) -> None:
    wrong = key[:2] + key[3:]
    [problem] = unknown_keys(entries(**{wrong: "1"}))
    assert problem.endswith("?")


def test_relative_paths_count_from_the_project_also_inside_vmargs() -> None:
    project = Project(Path("/srv/project"))
    given = entries(
        model_store="model_store",
        metrics_config="config/metrics.yaml",
        keystore="/etc/keys.p12",
        vmargs="-Xmx1g -Dlog4j.configurationFile=config/log4j2.xml",
    )
    assert effective_config(project, given, {}) == {
        "model_store": "/srv/project/model_store",
        "metrics_config": "/srv/project/config/metrics.yaml",
        "keystore": "/etc/keys.p12",
        "vmargs": "-Xmx1g -Dlog4j.configurationFile=file:///srv/project/config/log4j2.xml",
        "load_models": "all",
    }


def test_variables_are_filled_in_and_a_missing_one_is_named() -> None:
    given = entries(inference_address="http://$$HOST$$:8080")
    config = effective_config(COMMITTED, given, {"HOST": "127.0.0.9"})
    assert addresses(config).inference.url == "http://127.0.0.9:8080"
    with pytest.raises(ConfigError, match="HOST is not set"):
        effective_config(COMMITTED, given, {})


def test_ts_variables_count_only_where_the_file_lets_them() -> None:
    environment = {"TS_JOB_QUEUE_SIZE": "7", "TS_ALLOWED_URLS": ".*"}
    given = entries(job_queue_size="100", allowed_urls="(?!)")
    assert effective_config(COMMITTED, given, environment)["job_queue_size"] == "100"
    opened = effective_config(COMMITTED, [*given, Entry("enable_envvars_config", "true", 3)], environment)
    assert (opened["job_queue_size"], opened["allowed_urls"]) == ("7", "(?!)")


def test_addresses_that_are_left_out_are_torchserves_defaults() -> None:
    found = addresses({})
    assert [endpoint.url for endpoint in (found.inference, found.management, found.metrics)] == [
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "http://127.0.0.1:8082",
    ]
    assert (found.grpc_inference.authority, found.grpc_management.authority) == ("127.0.0.1:7070", "127.0.0.1:7071")


def test_a_client_reaches_a_server_that_listens_everywhere_on_the_loopback() -> None:
    found = addresses({"inference_address": "https://0.0.0.0:8443", "metrics_address": "http://[::]:9"})
    assert (found.inference.host, found.inference.url) == ("0.0.0.0", "https://127.0.0.1:8443")
    assert found.metrics.url == "http://[::1]:9"


def test_one_port_for_inference_and_management_is_one_endpoint() -> None:
    shared = addresses({"management_address": "http://127.0.0.1:8080"})
    assert [endpoint.key for endpoint in shared.all()].count("inference_address") == 1
    assert len(shared.all()) == 4


def test_every_wrong_address_is_named_at_once() -> None:
    wrong = {"inference_address": "8080", "metrics_address": "http://127.0.0.1:x", "grpc_inference_port": "70700"}
    with pytest.raises(ConfigError) as error:
        addresses(wrong)
    assert [problem.split("=")[0] for problem in error.value.problems] == list(wrong)


def test_the_effective_config_of_a_run_is_read_back_from_its_text() -> None:
    from marsmith.config.properties import render_properties

    config = effective_config(COMMITTED, read_server_config(COMMITTED), {})
    assert as_mapping(parse_properties(render_properties(config))) == config
