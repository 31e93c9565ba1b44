"""A server whose models answer in every form: one on our own base handler, and one as a stranger would write it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marsmith.cli import main
from marsmith.project import Project
from support.host_server import serving
from support.live_server import make_project, tiny_archive
from support.projects import REPOSITORY

# Not UTF-8, and no line break at its end.
PICTURE = b"\x89PNG\r\n\x1a\n\x00\xff\xfe"
# What our handler answers to each text, beside those that it refuses.
OURS = """
from marsmith_handler.base import BaseHandler
from marsmith_handler.errors import UnprocessableContent
from marsmith_handler.replies import Reply

PICTURE = <picture>
REPLIES = {
    "picture": Reply(PICTURE, "image/png"),
    "bytes": b"\\x00\\x01\\xff",
    "latin": Reply("caf\\u00e9".encode("latin-1"), "text/plain; charset=ISO-8859-1"),
    "text": "caf\\u00e9",
    "lookalike": {"error": 0.9, "fine": 0.1},
}


class ReplyHandler(BaseHandler):
    def load(self):
        pass

    def decode(self, request):
        text = request.as_text()
        if text == "refuse":
            raise UnprocessableContent("not this one")
        return text

    def infer(self, items):
        return items

    def encode(self, result, request):
        return REPLIES.get(result, {"text": result})
""".replace("<picture>", repr(PICTURE))
# Answers what the request says, with the status that it says.
STRANGER = """
import json

def handle(data, context):
    replies = []
    for index, row in enumerate(data or []):
        body = row["body"]
        wanted = body if isinstance(body, dict) else json.loads(bytes(body))
        context.set_response_status(wanted.get("status", 200), "As told", index)
        replies.append(wanted["reply"])
    return replies
"""


def our_archive(folder: Path) -> Path:
    """Pack a handler that is derived from the base handler that we ship."""
    shutil.copytree(REPOSITORY / "handlers", folder / "handlers", ignore=shutil.ignore_patterns("__pycache__"))
    handler, config = folder / "handlers" / "reply_handler.py", folder / "config.yaml"
    handler.write_text(OURS)
    config.write_text(json.dumps({"minWorkers": 1, "maxWorkers": 1, "batchSize": 2, "maxBatchDelay": 1}))
    line = ["pack", "--model-name", "ours", "--version", "1.0", "--handler", str(handler), "--config-file", str(config)]
    assert main([*line, "--export-path", str(folder)]) == 0
    return folder / "ours.mar"


@contextmanager
def reply_server(folder: Path, server: str = "TorchServe") -> Iterator[Project]:
    """Serve ``ours`` and ``stranger``, with tokens; ``server`` is one of ``host_server.SERVERS``."""
    stranger = tiny_archive(folder / "stranger.mar", name="stranger", handler=STRANGER)
    archives = {"ours.mar": our_archive(folder), "stranger.mar": stranger}
    project = make_project(folder / "project", archives)
    with serving(server, project):
        yield project


def asked(status: int, reply: object) -> bytes:
    """Return the body that makes the stranger answer so."""
    return json.dumps({"status": status, "reply": reply}).encode()
