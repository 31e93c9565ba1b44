"""The block ``handler:`` of model-config.yaml: settings of every handler; a concrete handler reads more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

POLICIES = ("strict", "warn", "off")


@dataclass(frozen=True)
class PredictionLogSettings:
    """The prediction log.

    Attributes:
        path: file of JSON lines; a relative path counts from the folder of TorchServe's logs.
        sample: share of the requests that are logged, 0 to 1.
        max_bytes: size at which the file is moved aside, to ``<path>.1``.
        files: number of files kept aside; the second and older ones are compressed.
        rotate_hours: age at which the file is moved aside; None: any.
        keep_days: age at which a file aside is removed, counted from its last line; None: any. Without
            ``rotate_hours`` the file is moved aside at this age, too.
        bodies: whether a line holds the whole request.
    """

    path: str
    sample: float = 0.01
    max_bytes: int = 64 * 1024 * 1024
    files: int = 1
    rotate_hours: float | None = None
    keep_days: float | None = None
    bodies: bool = False


@dataclass(frozen=True)
class HandlerSettings:
    """Settings of every handler.

    Attributes:
        environment: action if the packages differ from those that the archive records.
        max_body_bytes: largest body of one request in an envelope, after decoding base64.
        max_items: most requests in one envelope.
        max_response_bytes: largest reply; TorchServe ends a worker whose reply is over its own max_response_size.
        deadline_header: header with the time after which nobody waits for the reply, in milliseconds since the epoch.
        threads: torch's threads in one worker; None: cores / workers.
        decode_threads: threads that decode; None: chosen from the cores and the device.
        warm_up_s: time after which no further batch size is warmed up, in seconds.
        prediction_log: None: no log.
    """

    environment: str = "warn"
    max_body_bytes: int = 16 * 1024 * 1024
    max_items: int = 256
    max_response_bytes: int = 6_553_500
    deadline_header: str = "x-deadline-ms"
    threads: int | None = None
    decode_threads: int | None = None
    warm_up_s: float = 30.0
    prediction_log: PredictionLogSettings | None = None


def read_settings(block: Mapping[str, Any]) -> HandlerSettings:
    """Read the settings of every handler; other keys belong to the concrete handler.

    Raises:
        RuntimeError: with every wrong value.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    if "environment" in block:
        values["environment"] = block["environment"]
        # TorchServe reads YAML 1.1, in which a bare `off` is false.
        if block["environment"] is False:
            values["environment"] = "off"
        if values["environment"] not in POLICIES:
            problems.append(f"environment is {block['environment']!r}, not one of {', '.join(POLICIES)}")
    for key in ("max_body_bytes", "max_items", "max_response_bytes", "threads", "decode_threads", "warm_up_s"):
        if block.get(key) is not None:
            values[key] = block[key]
            if not _is_positive(block[key], whole=key != "warm_up_s"):
                problems.append(f"{key} is {block[key]!r}, not a positive number")
    if "deadline_header" in block:
        values["deadline_header"] = str(block["deadline_header"]).lower()
    if block.get("prediction_log") is not None:
        values["prediction_log"] = _prediction_log(block["prediction_log"], problems)
    if problems:
        raise RuntimeError("model-config.yaml, block handler: " + "; ".join(problems))
    return HandlerSettings(**values)


def _prediction_log(block: Any, problems: list[str]) -> PredictionLogSettings | None:
    known = set(PredictionLogSettings.__dataclass_fields__)
    if not isinstance(block, Mapping) or not block.keys() <= known or not isinstance(block.get("path"), str):
        problems.append(
            f"prediction_log is {block!r}, not a mapping with a path and, at will, {sorted(known - {'path'})}"
        )
        return None
    settings = PredictionLogSettings(**block)
    if not 0 <= settings.sample <= 1:
        problems.append(f"prediction_log.sample is {settings.sample!r}, not between 0 and 1")
    for name in ("max_bytes", "files", "rotate_hours", "keep_days"):
        value = getattr(settings, name)
        whole = name in ("max_bytes", "files")
        if not (value is None and not whole) and not _is_positive(value, whole=whole):
            problems.append(f"prediction_log.{name} is {value!r}, not a positive {'whole ' if whole else ''}number")
    if settings.bodies not in (True, False):
        problems.append(f"prediction_log.bodies is {settings.bodies!r}, not true or false")
    if not PurePosixPath(settings.path).name:
        problems.append("prediction_log.path names no file")
    return settings


def _is_positive(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return bool(value > 0)
