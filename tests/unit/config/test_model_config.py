from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from marsmith.config.model_config import ModelConfig, parse_model_config, render_model_config
from marsmith.errors import ConfigError

ALWAYS = ["minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout"]
ALWAYS.append("maxRetryTimeoutInSec")

settings = st.dictionaries(
    st.from_regex(r"[a-z_]{1,10}", fullmatch=True),
    st.one_of(
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.sampled_from(["no", "1_0", "1e3", "0x1f", "12:30", "~", "=", "2026-01-01"]),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        st.lists(st.integers()),
    ),
)


def test_the_keys_whose_defaults_are_traps_are_always_written() -> None:
    assert list(yaml.safe_load(render_model_config(ModelConfig(), {}))) == ALWAYS


@given(st.integers(1, 64), st.integers(1, 1000), settings)
def test_what_is_rendered_is_read_back(batch_size: int, delay: int, handler: dict[str, object]) -> None:
    config = ModelConfig(batchSize=batch_size, maxBatchDelay=delay)
    assert parse_model_config(render_model_config(config, handler)) == (config, handler)


@given(settings)
def test_the_server_and_the_worker_read_the_same_as_we_do(handler: dict[str, object]) -> None:
    text = render_model_config(ModelConfig(), handler)
    assert yaml.safe_load(text).get("handler", {}) == handler


def test_an_unknown_key_is_refused_because_the_server_would_ignore_it() -> None:
    with pytest.raises(ConfigError, match=r"maxBatchDelayMs.*did you mean 'maxBatchDelay'"):
        parse_model_config("maxBatchDelayMs: 5\n")
