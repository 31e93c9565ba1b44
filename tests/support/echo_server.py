"""A project whose server runs a tiny model, ``echo``, that does what a request asks of it: for tests of the client."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marsmith.project import Project
from support.live_server import make_project, running

QUEUE_SIZE = 3
PROPERTIES = {
    "token_expiration_min": "0.15",
    "job_queue_size": str(QUEUE_SIZE),
    "allowed_urls": "https://nowhere[.]invalid/.*",
    "max_request_size": "8000000",
}

HANDLER = """
import json, os, time
from ts.protocol.otf_message_handler import send_intermediate_predict_response

class Echo:
    def initialize(self, context):
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        return [self.one(index, row.get("body"), context) for index, row in enumerate(data)]

    def one(self, index, body, context):
        command = body if isinstance(body, dict) else {}
        if not command and bytes(body).startswith(b"{"):
            command = json.loads(bytes(body))
        if "tell" in command:
            with open(command["tell"] + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(file.name, command["tell"])
        while not os.path.exists(command.get("until", "/")):
            time.sleep(0.01)
        time.sleep(command.get("sleep", 0))
        if "raise" in command:
            raise RuntimeError(command["raise"])
        for part in range(command.get("parts", 1) - 1):
            while part and not os.path.exists(command.get("more", "/")):
                time.sleep(0.01)
            send_intermediate_predict_response([f"part {part}"], context.request_ids, "OK", 200, context)
        if "reject" in command:
            context.set_response_status(command["reject"], "Rejected", index)
            return {"code": command["reject"], "type": "Refused", "message": "not this one"}
        if "labels" in command:
            return command["labels"]
        header = context.get_request_header(index, "X-Echo")
        return {"version": self.version, "bytes": len(body), "header": header}
"""
CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\nmaxBatchDelay: 1\nresponseTimeout: 20\nstartupTimeout: 240\n"


def write_archive(store: Path, name: str, version: str, *, handler: str = HANDLER, config: str | None = CONFIG) -> Path:
    """Write ``<name>-<version>.mar`` into ``store``."""
    model = {"modelName": name, "modelVersion": version, "handler": "echo_handler.py"}
    if config:
        model["configFile"] = "model-config.yaml"
    path = store / f"{name}-{version}.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model, "archiverVersion": "0"})
        )
        archive.writestr("echo_handler.py", handler)
        if config:
            archive.writestr("model-config.yaml", config)
    return path


@contextmanager
def echo_server(folder: Path) -> Iterator[Project]:
    """Serve ``echo`` 1.0, with tokens that expire and a job queue that is full soon; version 2.0 lies in the store."""
    first = write_archive(folder, "echo", "1.0")
    project = make_project(folder / "project", {first.name: first}, **PROPERTIES)
    with running(project):
        write_archive(project.model_store, "echo", "2.0")
        yield project
