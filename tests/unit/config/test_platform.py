"""Which platform runs a container, and what it expects, from environment variables alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsmith.config.platform import Platform, find_platform, server_settings
from marsmith.errors import PreflightError, UsageError

SAGEMAKER = Path("/opt/ml/model")
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
VERTEX = {"AIP_HTTP_PORT": "8081", "AIP_HEALTH_ROUTE": "/health", "AIP_PREDICT_ROUTE": "/v1/endpoints/7:predict"}


@pytest.mark.parametrize(
    ("environment", "serves", "foreground", "expected"),
    [
        ({}, False, True, None),
        ({}, True, False, Platform("SageMaker", 8080, models=SAGEMAKER)),
        ({"SAGEMAKER_BIND_TO_PORT": "9000"}, True, False, Platform("SageMaker", 9000, models=SAGEMAKER)),
        ({"SAGEMAKER_BASE_DIR": "/b"}, True, False, Platform("SageMaker", 8080, models=Path("/b/model"))),
        ({"MARSMITH_PLATFORM": "SageMaker"}, False, False, Platform("SageMaker", 8080, models=SAGEMAKER)),
        (VERTEX, False, False, Platform("Vertex AI", 8081, "/health", "/v1/endpoints/7:predict")),
        ({"AIP_HTTP_PORT": "8080"}, False, False, Platform("Vertex AI", 8080, "/ping", "/invocations")),
        (
            {**VERTEX, "AIP_STORAGE_URI": "file:///a%20b"},
            False,
            False,
            Platform("Vertex AI", 8081, "/health", "/v1/endpoints/7:predict", Path("/a b")),
        ),
        (POD, False, False, Platform("KServe", 8080, models=Path("/mnt/models"))),
        ({**POD, "PORT": "80"}, False, False, Platform("KServe", 80, models=Path("/mnt/models"))),
        ({"PORT": "80"}, False, True, Platform("PORT", 80)),
        ({"PORT": "80"}, False, False, None),
        ({**VERTEX, **POD, "PORT": "80", "MARSMITH_PLATFORM": "none"}, True, True, None),
    ],
)
def test_the_environment_says_which_platform_it_is(
    environment: dict[str, str], serves: bool, foreground: bool, expected: Platform | None
) -> None:
    assert find_platform(environment, serves=serves, foreground=foreground, is_folder=lambda _: True) == expected


def test_a_folder_that_is_not_there_says_nothing() -> None:
    assert find_platform(POD, is_folder=lambda _: False) is None
    assert find_platform({}, serves=True, is_folder=lambda _: False) == Platform("SageMaker", 8080)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AIP_HTTP_PORT": "http"}, "AIP_HTTP_PORT=http is not a port"),
        ({"AIP_HTTP_PORT": "0"}, "AIP_HTTP_PORT=0 is not a port"),
        ({"PORT": "65536"}, "PORT=65536 is not a port"),
        ({**VERTEX, "AIP_HEALTH_ROUTE": "health"}, "AIP_HEALTH_ROUTE=health is not a path"),
        ({**VERTEX, "AIP_PREDICT_ROUTE": "/a?b"}, "AIP_PREDICT_ROUTE=/a\\?b is not a path"),
        ({**VERTEX, "AIP_STORAGE_URI": "gs://bucket/m"}, "AIP_STORAGE_URI=gs://bucket/m: marsmith does not download"),
        ({"MARSMITH_PLATFORM": "sagemakr"}, "unknown platform.*did you mean 'sagemaker'"),
    ],
)
def test_a_wrong_value_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_platform(environment, foreground=True)


def test_the_folder_of_a_platform_has_archives_or_is_one(tmp_path: Path) -> None:
    models = tmp_path / "model"
    platform = Platform("SageMaker", 8080, models=models)
    with pytest.raises(PreflightError, match="cannot be read"):
        server_settings(platform)
    models.mkdir()
    with pytest.raises(PreflightError, match="neither an archive nor the members of one"):
        server_settings(platform)
    (models / "m.mar").touch()
    address = {"inference_address": "http://0.0.0.0:8080"}
    assert server_settings(platform) == address | {"model_store": str(models), "load_models": "all"}
    (models / "model-store" / "m" / "MAR-INF").mkdir(parents=True)
    assert server_settings(platform)["model_store"] == str(models / "model-store")
    (models / "MAR-INF").mkdir()
    assert server_settings(platform) == address | {"model_store": str(tmp_path), "load_models": "model"}
    assert server_settings(Platform("PORT", 8080)) == address
