"""Tiny versions that say who they are, good ones and bad ones, and a record of which was the default when."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from marsmith.deploy.versions import Event

MODEL = "echo"
HANDLER = """
import json, os, time

class Echo:
    def initialize(self, context):
        self.version = context.manifest["model"]["modelVersion"]
        self.calls = 0
        {initialize}

    def handle(self, data, context):
        # Not a request of a user: a drain asks which process has nothing left to do.
        asks = context.get_request_header(0, "describe") == "True"
        return [{{"pid": os.getpid()}}] if asks else [self.one(bytes(row["body"]).decode()) for row in data]

    def one(self, text):
        self.calls += 1
        echo = text
        {one}
        return {{"version": self.version, "echo": echo}}
"""
# What is wrong with a version: a line of its handler, the first at load and the others at each request.
LOAD = "raise ValueError('these weights are not ours')"
CRASH = "os._exit(3)"
WRONG = "echo = text[::-1]"
SLOW = "time.sleep(0.25)"


def after(calls: int, fault: str) -> str:
    """Return the fault, from so many requests on."""
    return f"self.calls > {calls} and {fault}" if not fault.startswith("raise") else f"if self.calls > {calls}: {fault}"


def write_version(
    folder: Path,
    version: str,
    *,
    at_load: str = "pass",
    at_request: str = "pass",
    model: str = MODEL,
    workers: int = 1,
    batch_size: int = 2,
    example: bool = True,
) -> Path:
    """Write ``<model>-<version>.mar``, whose replies name the version and echo the request."""
    manifest = {"modelName": model, "modelVersion": version, "handler": "tiny_handler.py"}
    manifest["configFile"] = "model-config.yaml"
    config = {"minWorkers": workers, "maxWorkers": workers, "batchSize": batch_size, "maxBatchDelay": 1}
    config |= {"responseTimeout": 20, "startupTimeout": 60, "maxRetryTimeoutInSec": 10}
    path = folder / f"{model}-{version}.mar"
    with zipfile.ZipFile(path, "w") as archive:
        head = {"createdOn": "01/01/2024 00:00:00", "runtime": "python", "archiverVersion": "0.12.0"}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({**head, "model": manifest}))
        archive.writestr("tiny_handler.py", HANDLER.format(initialize=at_load, one=at_request))
        archive.writestr("model-config.yaml", json.dumps(config))
        if example:
            archive.writestr("MAR-INF/examples/examples.json", json.dumps([_example(version)]))
            archive.writestr("MAR-INF/examples/text.bin", "abc")
    return path


def _example(version: str) -> dict[str, object]:
    reply = {"version": version, "echo": "abc"}
    return {
        "input": "text.bin",
        "content_type": "application/octet-stream",
        "status": 200,
        "reply": reply,
        "reply_sha256": None,
        "tolerance": 0.0,
    }


@dataclass
class Reigns:
    """Which version may have answered when: from before it was made the default to after another one was.

    Attributes:
        spans: version, from, to; times on the monotonic clock, in seconds.
    """

    spans: list[tuple[str, float, float]] = field(default_factory=list)
    _began_s: float = 0.0

    def note(self, version: str, from_s: float, to_s: float = float("inf")) -> None:
        """Note that ``version`` is made the default between these moments: the one before ends at the second."""
        if self.spans:
            last, begun, _ = self.spans[-1]
            self.spans[-1] = (last, begun, to_s)
        self.spans.append((version, from_s, float("inf")))

    def heard(self, event: Event, now_s: float) -> None:
        """Listen to a deploy."""
        if event.step.action != "switch":
            return
        if event.state == "begin":
            self._began_s = now_s
        else:
            self.note(event.step.version, self._began_s, now_s)

    def had(self, version: str, from_s: float, to_s: float) -> bool:
        """Tell whether ``version`` was the default at some time between these moments."""
        return any(name == version and from_s <= end and begin <= to_s for name, begin, end in self.spans)
