"""``model-config.yaml``: the file in an archive with TorchServe's settings for one version of a model.

The keys are TorchServe's own (ModelConfig.java, v0.12.0). TorchServe ignores unknown keys and only logs wrong types, so
both are refused here. Seven keys are always written, because their defaults are traps: any model-config.yaml sets both
timeouts to 120 s over everything else, a maxBatchDelay that is missing or 0 means 100 ms, and for the 300 s of
maxRetryTimeoutInSec a dead worker counts as healthy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from marsmith import strict_yaml
from marsmith.errors import ConfigError
from marsmith.strict_yaml import Strict

FILE_NAME = "model-config.yaml"
# The only key in a rendered model-config.yaml that is not TorchServe's: the block for the handler.
HANDLER_KEY = "handler"


class ModelConfig(Strict):
    """TorchServe's settings of one version, with its own key names.

    Times have TorchServe's units: seconds for timeouts, milliseconds for maxBatchDelay.
    """

    min_workers: int = Field(alias="minWorkers", ge=1, default=1)
    max_workers: int = Field(alias="maxWorkers", ge=1, default=1)
    batch_size: int = Field(alias="batchSize", ge=1, default=8)
    max_batch_delay_ms: int = Field(alias="maxBatchDelay", ge=1, default=1)
    response_timeout_s: int = Field(alias="responseTimeout", ge=1, default=30)
    startup_timeout_s: int = Field(alias="startupTimeout", ge=1, default=120)
    job_queue_size: int | None = Field(alias="jobQueueSize", ge=1, default=None)
    max_retry_timeout_s: int = Field(alias="maxRetryTimeoutInSec", ge=1, default=30)
    client_timeout_ms: int | None = Field(alias="clientTimeoutInMills", ge=0, default=None)
    device_type: Literal["cpu", "gpu", "neuron"] | None = Field(alias="deviceType", default=None)
    device_ids: list[int] | None = Field(alias="deviceIds", default=None)
    parallel_type: Literal["pp", "tp", "pptp", "custom"] | None = Field(alias="parallelType", default=None)
    parallel_level: int | None = Field(alias="parallelLevel", ge=1, default=None)
    torchrun: dict[str, Any] | None = None
    use_job_ticket: bool | None = Field(alias="useJobTicket", default=None)
    sequence_batching: bool | None = Field(alias="sequenceBatching", default=None)
    sequence_max_idle_ms: int | None = Field(alias="sequenceMaxIdleMSec", default=None)
    sequence_timeout_ms: int | None = Field(alias="sequenceTimeoutMSec", default=None)
    max_sequence_job_queue_size: int | None = Field(alias="maxSequenceJobQueueSize", default=None)
    max_num_sequence: int | None = Field(alias="maxNumSequence", default=None)
    continuous_batching: bool | None = Field(alias="continuousBatching", default=None)
    async_communication: bool | None = Field(alias="asyncCommunication", default=None)
    use_venv: bool | None = Field(alias="useVenv", default=None)

    @model_validator(mode="after")
    def _workers_in_order(self) -> ModelConfig:
        if self.max_workers < self.min_workers:
            raise ValueError(f"maxWorkers {self.max_workers} is below minWorkers {self.min_workers}")
        return self

    def torchserve_keys(self) -> dict[str, Any]:
        """Return the keys with TorchServe's names: always the seven with dangerous defaults, others if they are set."""
        return self.model_dump(by_alias=True, exclude_none=True)


def render_model_config(config: ModelConfig, handler: Mapping[str, Any]) -> str:
    """Render ``model-config.yaml``: TorchServe's keys, then the block for the handler."""
    data = config.torchserve_keys()
    if handler:
        data[HANDLER_KEY] = dict(handler)
    return strict_yaml.dump(data)


def parse_model_config(text: str, source: str = FILE_NAME) -> tuple[ModelConfig, dict[str, Any]]:
    """Parse a ``model-config.yaml`` that marsmith rendered, into TorchServe's part and the handler's.

    Raises:
        ConfigError: the text has unknown keys, wrong types, or values out of range.
    """
    data = dict(strict_yaml.load_model_config(text, source, ConfigError))
    handler = data.pop(HANDLER_KEY, None) or {}
    return strict_yaml.parse(ModelConfig, strict_yaml.dump(data), source, ConfigError), dict(handler)
