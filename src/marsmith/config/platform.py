"""The platform that runs this container, as its environment says, and what the platform expects of a server.

- SageMaker runs the image with the argument ``serve``: port 8080, ``/ping``, ``/invocations``, ``/opt/ml/model``.
  https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
- Vertex AI sets ``AIP_HTTP_PORT``, ``AIP_HEALTH_ROUTE``, ``AIP_PREDICT_ROUTE`` and ``AIP_STORAGE_URI``.
  https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
- KServe mounts the model at ``/mnt/models`` of a pod.
- Others say a port only, in ``PORT``: Cloud Run, Heroku, Knative.

The first three let only their own users in, so requests need no token there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from marsmith.errors import PreflightError, UsageError
from marsmith.names import did_you_mean

Name = Literal["SageMaker", "Vertex AI", "KServe", "PORT"]

VARIABLE = "MARSMITH_PLATFORM"
_NAMES: Mapping[str, Name] = {"sagemaker": "SageMaker", "vertex": "Vertex AI", "kserve": "KServe"}
_NONE = "none"
_SAGEMAKER_FOLDER = "/opt/ml"
_KSERVE_MODEL = Path("/mnt/models")
_PORT = "8080"
_SUFFIXES = (".mar", ".tar.gz")


@dataclass(frozen=True)
class Platform:
    """A platform, and its contract.

    Attributes:
        name: its name; ``PORT``: all that is known is a port.
        port: port of the inference API, at every address of the container.
        health: path of its health check.
        predict: path of its requests, for the one model of the container.
        models: folder with the archive; None: the project's own model store.
    """

    name: Name
    port: int
    health: str = "/ping"
    predict: str = "/invocations"
    models: Path | None = None

    @property
    def guards(self) -> bool:
        """Whether it lets only its own users in."""
        return self.name != "PORT"

    @property
    def has_one_model(self) -> bool:
        """Whether its requests name no model."""
        return self.name in {"SageMaker", "Vertex AI"}


def find_platform(
    environment: Mapping[str, str],
    *,
    serves: bool = False,
    foreground: bool = False,
    is_folder: Callable[[Path], bool] = Path.is_dir,
) -> Platform | None:
    """Return the platform of an environment; None if there is none.

    Args:
        environment: environment variables. ``MARSMITH_PLATFORM`` names the platform, or ``none``, whatever else is set.
        serves: whether the command line has the argument ``serve``.
        foreground: whether the server stays attached, as in a container; only then ``PORT`` counts.
        is_folder: returns whether a folder exists.

    Raises:
        UsageError: a variable has a wrong value.
    """
    name = _named(environment) if VARIABLE in environment else _recognised(environment, serves, is_folder)
    if name == "SageMaker":
        port = _port(environment, "SAGEMAKER_BIND_TO_PORT")
        # The variable of SageMaker's own toolkit for inference.
        folder = Path(environment.get("SAGEMAKER_BASE_DIR") or _SAGEMAKER_FOLDER)
        return Platform(name, port, models=_existing(folder / "model", is_folder))
    if name == "Vertex AI":
        return Platform(
            name,
            _port(environment, "AIP_HTTP_PORT"),
            _route(environment, "AIP_HEALTH_ROUTE", "/ping"),
            _route(environment, "AIP_PREDICT_ROUTE", "/invocations"),
            _storage(environment.get("AIP_STORAGE_URI", "")),
        )
    if name == "KServe":
        return Platform(name, _port(environment, "PORT"), models=_existing(_KSERVE_MODEL, is_folder))
    if foreground and environment.get("PORT") and environment.get(VARIABLE) != _NONE:
        return Platform("PORT", _port(environment, "PORT"))
    return None


def server_settings(platform: Platform) -> dict[str, str]:
    """Return the keys of the server config that a platform sets.

    Raises:
        PreflightError: its folder of models is empty, or cannot be read.
    """
    address = {"inference_address": f"http://0.0.0.0:{platform.port}"}
    return address | (_store(platform.models) if platform.models else {})


def _store(folder: Path) -> dict[str, str]:
    """Return how TorchServe finds the archives in a folder, which may also be an unpacked archive itself."""
    try:
        if (folder / "MAR-INF").is_dir():
            return {"model_store": str(folder.parent), "load_models": folder.name}
        # The layout of KServe's own TorchServe.
        inner = folder / "model-store"
        store = inner if inner.is_dir() else folder
        found = [path for path in store.iterdir() if path.name.endswith(_SUFFIXES) or (path / "MAR-INF").is_dir()]
    except OSError as error:
        raise PreflightError(f"{folder} cannot be read: {error.strerror}") from None
    if not found:
        raise PreflightError(
            f"{folder} has neither an archive nor the members of one",
            tip="put NAME-VERSION.mar there, or what `unzip NAME-VERSION.mar` gives",
        )
    return {"model_store": str(store), "load_models": "all"}


def _named(environment: Mapping[str, str]) -> Name | None:
    value = environment[VARIABLE].strip().lower()
    if value not in {*_NAMES, _NONE}:
        known = [*_NAMES, _NONE]
        raise UsageError(f"{VARIABLE}={value}: unknown platform{did_you_mean(value, known)}", tip=", ".join(known))
    return _NAMES.get(value)


def _recognised(environment: Mapping[str, str], serves: bool, is_folder: Callable[[Path], bool]) -> Name | None:
    if environment.get("AIP_HTTP_PORT"):
        return "Vertex AI"
    if serves:
        return "SageMaker"
    # Only a pod: on any other machine the folder says nothing about who may send requests.
    return "KServe" if "KUBERNETES_SERVICE_HOST" in environment and is_folder(_KSERVE_MODEL) else None


def _port(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name) or _PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
        raise UsageError(f"{name}={text} is not a port")
    return int(text)


def _route(environment: Mapping[str, str], name: str, default: str) -> str:
    route = environment.get(name) or default
    if not route.startswith("/") or "?" in route or not route.isascii() or not route.isprintable() or " " in route:
        raise UsageError(f"{name}={route} is not a path, such as {default}")
    return route


def _storage(uri: str) -> Path | None:
    if not uri:
        return None
    parts = urlsplit(uri)
    if parts.scheme in {"", "file"}:
        return Path(unquote(parts.path))
    raise UsageError(
        f"AIP_STORAGE_URI={uri}: marsmith does not download archives",
        tip="build the archive into the image, in its model store, and upload the model without an artifact URI",
    )


def _existing(folder: Path, is_folder: Callable[[Path], bool]) -> Path | None:
    return folder if is_folder(folder) else None
