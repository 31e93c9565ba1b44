"""Paths of the host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.host.catalogue import version_order
from marsmith.host.routes import NoRoute, Route, route


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("POST", "/predictions/m", Route("predict", "m")),
        ("PUT", "/predictions/m/1.0", Route("predict", "m", "1.0")),
        ("POST", "/predictions/m/1%2E0/", Route("predict", "m", "1.0")),
        ("POST", "/explanations/m", Route("explain", "m")),
        ("POST", "/v1/models/m:predict", Route("predict", "m")),
        ("POST", "/v1/models/m/versions/2:predict", Route("predict", "m", "2")),
        ("GET", "/v1/models/m", Route("v1 ready", "m")),
        ("POST", "/v2/models/m/infer", Route("predict", "m")),
        ("POST", "/v2/models/m/versions/2/infer", Route("predict", "m", "2")),
        ("GET", "/v2/models/m/ready", Route("v2 model ready", "m")),
        ("GET", "/v2/models/m/versions/2", Route("v2 model", "m", "2")),
        ("GET", "/v2", Route("v2 server")),
        ("GET", "/models/m/all", Route("describe", "m", "all")),
        ("POST", "/invocations", Route("predict")),
        ("GET", "/", Route("page", needs_token=False)),
    ],
)
def test_each_path_of_torchserve_and_kserve_is_known(method: str, path: str, found: Route) -> None:
    assert route(method, path) == found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/predictions", 404),
        ("POST", "/predictions/a/b/c", 404),
        ("POST", "/v1/models", 404),
        ("POST", "/v1/models/m:guess", 404),
        ("GET", "/v1/models/:", 404),
        ("POST", "/v1/models/:predict", 404),
        ("POST", "/v2/models/m/versions", 404),
        ("POST", "/ping", 405),
        ("DELETE", "/models/m", 405),
        ("POST", "/models", 405),
        ("GET", "/v2/models/m/infer", 405),
    ],
)
def test_any_other_path_or_method_is_refused_in_torchserves_words(method: str, path: str, status: int) -> None:
    found = route(method, path)
    assert isinstance(found, NoRoute)
    assert found.status == status
    assert found.message.endswith("please refer to API document.")


@given(st.text(alphabet="/:%.v12models predictions", max_size=40), st.sampled_from(["GET", "POST", "BREW"]))
def test_no_path_breaks_it(path: str, method: str) -> None:
    assert isinstance(route(method, path), Route | NoRoute)


def test_versions_sort_as_people_do() -> None:
    versions = ["1.10", "1.9", "2", "1.9-beta", "v3"]
    assert sorted(versions, key=version_order) == ["v3", "1.9", "1.9-beta", "1.10", "2"]
