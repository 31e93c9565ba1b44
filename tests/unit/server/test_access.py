"""Which servers are refused because everybody could use them."""

from __future__ import annotations

import pytest

from marsmith.config.platform import Platform
from marsmith.server.access import access_problems

OFF = {"disable_token_authorization": "true"}
OPEN = {"inference_address": "http://0.0.0.0:8080"}
MANAGED = {"management_address": "http://0.0.0.0:8081"}


@pytest.mark.parametrize(
    ("config", "platform", "front", "messages"),
    [
        ({}, None, "none", []),
        (OPEN | MANAGED, None, "none", []),
        (OFF, None, "none", []),
        (OFF | OPEN, None, "none", ["tokens are off, and inference_address is open to other machines"]),
        (OFF | MANAGED, None, "envoy", ["tokens are off, and management_address is open to other machines"]),
        (OFF | OPEN, Platform("PORT", 80), "none", ["tokens are off, and inference_address is open"]),
        (OPEN, Platform("KServe", 80), "envoy", []),
        (OFF | OPEN, Platform("KServe", 80), "envoy", ["tokens are off, and KServe needs none for predictions"]),
        (OPEN | MANAGED, Platform("SageMaker", 80), "envoy", ["on SageMaker only the container itself may manage"]),
        (OPEN, Platform("Vertex AI", 80), "none", ["Vertex AI sends requests without a token"]),
        ({"inference_address": "?"}, None, "none", []),
    ],
)
def test_an_open_address_needs_tokens_or_a_platform_that_guards_it(
    config: dict[str, str], platform: Platform | None, front: str, messages: list[str]
) -> None:
    found = [problem.message for problem in access_problems(config, platform, front)]  # type: ignore[arg-type]
    assert len(found) == len(messages)
    assert all(expected in message for expected, message in zip(messages, found, strict=True))
