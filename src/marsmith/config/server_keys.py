"""The keys that TorchServe 0.12.0 reads in ``config.properties``; it ignores any other without a word."""

from __future__ import annotations

# Read by the frontend (ConfigManager.java).
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
# Read by the torchserve command before it starts the frontend.
LAUNCHER_KEYS = frozenset({"plugins_path", "vmargs"})
KNOWN_KEYS = FRONTEND_KEYS | LAUNCHER_KEYS
# Their values are paths; a relative one counts from the folder in which the server is started.
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
# With enable_envvars_config=true a variable TS_<KEY> beats the file; these have another name (ConfigManager.java).
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
    """Return the environment variable that can override ``key``; None where there is none."""
    if key in _WITHOUT_VARIABLE:
        return None
    return _UNUSUAL_VARIABLES.get(key, f"TS_{key.upper()}")
