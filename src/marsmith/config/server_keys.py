"""Keys of TorchServe 0.12.0 in ``config.properties``: names, types and defaults. It ignores other keys silently.

From ConfigManager.java. A number that cannot be parsed stops the start. A boolean that is not ``true`` is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Keys that the frontend reads (ConfigManager.java).
FRONTEND_KEYS = frozenset(
    """
    allowed_urls async_logging blacklist_env_vars certificate_file cors_allowed_headers cors_allowed_methods
    cors_allowed_origin cpp_log_config cpu_launcher_args cpu_launcher_enable debug decode_input_request
    default_response_timeout default_service_handler default_startup_timeout default_workers_per_model
    disable_system_metrics disable_token_authorization enable_envvars_config enable_grpc_ssl enable_metrics_api
    enable_model_api grpc_inference_address grpc_inference_max_connection_age_grace_ms
    grpc_inference_max_connection_age_ms grpc_inference_port grpc_management_address
    grpc_management_max_connection_age_grace_ms grpc_management_max_connection_age_ms grpc_management_port
    inference_address initial_distribution_port initial_worker_port install_py_dep_per_model io_ratio ipex_enable
    ipex_gpu_enable job_queue_size keystore keystore_pass keystore_type limit_max_image_pixels load_models
    management_address max_request_size max_response_size metric_time_interval metrics_address metrics_config
    metrics_mode model_metrics_auto_detect model_server_home model_snapshot model_store models netty_client_threads
    number_of_gpu number_of_netty_threads prefer_direct_buffer private_key_file python service_envelope
    system_metrics_cmd token_expiration_min ts_header_key_sequence_end ts_header_key_sequence_id
    ts_header_key_sequence_start ts_open_inference_protocol unregister_model_timeout use_env_allowed_urls
    use_native_io workflow_store
    """.split()  # noqa: SIM905, a paragraph of words is easier to compare with the source than 70 lines
)
# Keys that the torchserve command reads before it starts the frontend.
LAUNCHER_KEYS = frozenset({"plugins_path", "vmargs"})
KNOWN_KEYS = FRONTEND_KEYS | LAUNCHER_KEYS
# Keys with paths; a relative path refers to the folder in which the server is started.
PATH_KEYS = frozenset(
    {
        "certificate_file",
        "cpp_log_config",
        "keystore",
        "metrics_config",
        "model_store",
        "plugins_path",
        "private_key_file",
        "workflow_store",
    }
)
# With enable_envvars_config=true a variable TS_<KEY> overrides the file. These have another name (ConfigManager.java).
_UNUSUAL_VARIABLES = {
    "token_expiration_min": "TS_TOKEN_EXPIRATION_TIME_MIN",
    "ts_header_key_sequence_end": "TS_HEADER_KEY_SEQUENCE_END",
    "ts_header_key_sequence_id": "TS_HEADER_KEY_SEQUENCE_ID",
    "ts_header_key_sequence_start": "TS_HEADER_KEY_SEQUENCE_START",
    "ts_open_inference_protocol": "TS_OPEN_INFERENCE_PROTOCOL",
}
_WITHOUT_VARIABLE = LAUNCHER_KEYS | frozenset(
    {
        "enable_envvars_config",
        "io_ratio",
        "metric_time_interval",
        "model_snapshot",
        "models",
        "python",
        "system_metrics_cmd",
        "use_env_allowed_urls",
        "use_native_io",
    }
)


def variable(key: str) -> str | None:
    """Return the environment variable that overrides ``key``; None if there is none."""
    if key in _WITHOUT_VARIABLE:
        return None
    return _UNUSUAL_VARIABLES.get(key, f"TS_{key.upper()}")


Kind = Literal["boolean", "integer", "decimal", "address", "port", "path", "text"]

LARGEST_PORT = 65534


@dataclass(frozen=True)
class KeyType:
    """Type and default of one key.

    Attributes:
        kind: type of its value.
        default: TorchServe's default; empty if there is none.
        lowest: smallest sensible value of a number.
    """

    kind: Kind
    default: str = ""
    lowest: int = 0


def _booleans(default: str, keys: str) -> dict[str, KeyType]:
    return {key: KeyType("boolean", default) for key in keys.split()}


KEY_TYPES: dict[str, KeyType] = {
    **_booleans(
        "false",
        "async_logging cpu_launcher_enable debug disable_system_metrics disable_token_authorization"
        " enable_envvars_config enable_grpc_ssl enable_model_api install_py_dep_per_model ipex_enable ipex_gpu_enable"
        " model_metrics_auto_detect prefer_direct_buffer ts_open_inference_protocol use_env_allowed_urls",
    ),
    **_booleans("true", "decode_input_request enable_metrics_api limit_max_image_pixels use_native_io"),
    "inference_address": KeyType("address", "http://127.0.0.1:8080"),
    "management_address": KeyType("address", "http://127.0.0.1:8081"),
    "metrics_address": KeyType("address", "http://127.0.0.1:8082"),
    "grpc_inference_address": KeyType("text", "127.0.0.1"),
    "grpc_management_address": KeyType("text", "127.0.0.1"),
    "grpc_inference_port": KeyType("port", "7070", 1),
    "grpc_management_port": KeyType("port", "7071", 1),
    "initial_worker_port": KeyType("port", "9000", 1),
    "initial_distribution_port": KeyType("port", "29500", 1),
    "grpc_inference_max_connection_age_ms": KeyType("integer", "", 1),
    "grpc_inference_max_connection_age_grace_ms": KeyType("integer", "", 1),
    "grpc_management_max_connection_age_ms": KeyType("integer", "", 1),
    "grpc_management_max_connection_age_grace_ms": KeyType("integer", "", 1),
    "default_response_timeout": KeyType("integer", "120", 1),
    "default_startup_timeout": KeyType("integer", "120", 1),
    "unregister_model_timeout": KeyType("integer", "120", 1),
    # 0 means one per GPU, or one per core if there is no GPU.
    "default_workers_per_model": KeyType("integer", "0"),
    "job_queue_size": KeyType("integer", "100", 1),
    "io_ratio": KeyType("integer", "50", 1),
    "max_request_size": KeyType("integer", "6553500", 1),
    "max_response_size": KeyType("integer", "6553500", 1),
    "metric_time_interval": KeyType("integer", "60", 1),
    "netty_client_threads": KeyType("integer", "0"),
    "number_of_netty_threads": KeyType("integer", "0"),
    "number_of_gpu": KeyType("integer", "those that nvidia-smi shows"),
    "token_expiration_min": KeyType("decimal", "60"),
    "allowed_urls": KeyType("text", "file://.*|http(s)?://.*"),
    "blacklist_env_vars": KeyType("text"),
    "certificate_file": KeyType("path"),
    "cors_allowed_headers": KeyType("text"),
    "cors_allowed_methods": KeyType("text"),
    "cors_allowed_origin": KeyType("text"),
    "cpp_log_config": KeyType("path"),
    "cpu_launcher_args": KeyType("text"),
    "default_service_handler": KeyType("text"),
    "keystore": KeyType("path"),
    "keystore_pass": KeyType("text", "changeit"),
    "keystore_type": KeyType("text", "PKCS12"),
    "load_models": KeyType("text"),
    "metrics_config": KeyType("path", "TorchServe's own metrics.yaml"),
    "metrics_mode": KeyType("text", "log"),
    "model_server_home": KeyType("text"),
    "model_snapshot": KeyType("text"),
    "model_store": KeyType("path"),
    "models": KeyType("text"),
    "plugins_path": KeyType("text"),
    "private_key_file": KeyType("path"),
    "python": KeyType("text", "python"),
    "service_envelope": KeyType("text"),
    "system_metrics_cmd": KeyType("text"),
    "ts_header_key_sequence_end": KeyType("text", "ts_request_sequence_end"),
    "ts_header_key_sequence_id": KeyType("text", "ts_request_sequence_id"),
    "ts_header_key_sequence_start": KeyType("text", "ts_request_sequence_start"),
    "vmargs": KeyType("text"),
    "workflow_store": KeyType("text", "the model store"),
}


def number(value: str) -> int | None:
    """Parse like Java's ``Integer.parseInt``; None if it throws, as for white space around the digits."""
    digits = value[1:] if value[:1] in {"+", "-"} else value
    if not digits or not digits.isascii() or not digits.isdigit():
        return None
    return int(value) if -(2**31) <= int(value) < 2**31 else None


def is_true(value: str) -> bool:
    """Parse like Java's ``Boolean.parseBoolean``: only ``true`` is true, in any case, without white space."""
    return value.lower() == "true"
