"""The project's two files of settings as a pod needs them, in a ConfigMap."""

from __future__ import annotations

from collections.abc import Sequence

from marsmith import strict_yaml
from marsmith.config.model_spec import ModelSpec
from marsmith.config.platform import Platform, server_settings
from marsmith.config.project_settings import load_settings
from marsmith.config.properties import as_mapping, render_properties
from marsmith.config.server_config import addresses, read_server_config
from marsmith.errors import UsageError
from marsmith.names import archive_file_name
from marsmith.project import Project
from marsmith.server.access import access_problems

INFERENCE_PORT = 8080
LISTENER_PORT = 8083
SERVER_FILE = "config.properties"
SETTINGS_FILE = "marsmith.yaml"
_PLATFORM = Platform("KServe", INFERENCE_PORT)


def pod_files(project: Project, models: Sequence[ModelSpec]) -> dict[str, str]:
    """Return the text of ``config.properties`` and ``config/marsmith.yaml`` in a pod, by name.

    A pod listens at every address for requests and probes, and serves the archives of these models only.

    Raises:
        UsageError: a server with these files would not start in a pod.
        ConfigError: one of the files violates its format.
    """
    config = as_mapping(read_server_config(project)) | server_settings(_PLATFORM)
    config["load_models"] = ",".join(archive_file_name(model.name, model.version) for model in models)
    settings = load_settings(project)
    for problem in access_problems(config, _PLATFORM, settings.front):
        raise UsageError(f"config.properties: {problem.message}", tip=problem.tip)
    taken = {each.port: each.key for each in addresses(config).all() if each.key != "inference_address"}
    for port in (INFERENCE_PORT, LISTENER_PORT):
        if port in taken:
            raise UsageError(
                f"config.properties: {taken[port]} has port {port}, at which a pod answers its callers",
                tip=f"give {taken[port]} another port",
            )
    listening = settings.model_copy(update={"listener": f"0.0.0.0:{LISTENER_PORT}"})
    return {
        SERVER_FILE: render_properties(config),
        SETTINGS_FILE: strict_yaml.dump(listening.model_dump(mode="json")),
    }
