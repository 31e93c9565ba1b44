"""A light server in place of TorchServe, with any version of any model: it says which one was asked, and can fail.

A request's body is JSON. ``{"2.0": "fail"}`` makes version 2.0 fail on it; ``""`` stands for the unnamed version. What
else it may be told: ``missing``, ``item500``, ``item422``, ``busy``, ``break`` (the connection); ``[2, "fail"]`` waits
2 s before.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as oip

from marsmith.client.grpc_messages import SERVICE, message_class
from marsmith.run_state import Backend

PREDICTIONS = f"/{SERVICE}/Predictions"
STREAM = f"/{SERVICE}/StreamPredictions2"
MODEL_INFER = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Seen:
    """A request as the server got it: version, and headers or the keys of the message's map with their values."""

    version: str
    path: str
    said: dict[str, str]


@dataclass
class LightVersions:
    """The server, and what it has seen."""

    backend: Backend
    seen: list[Seen] = field(default_factory=list)

    def copies(self) -> list[Seen]:
        return [each for each in self.seen if each.said.get("x-marsmith-shadow") == "1"]


def fault(body: bytes, version: str) -> Any:
    wanted = json.loads(body[:300].partition(b"\n")[0] or b"{}").get(version)
    wait, kind = wanted if isinstance(wanted, list) else (0, wanted)
    time.sleep(wait)
    return kind


def item(code: int) -> bytes:
    """Return the body that our handlers give for an item's error."""
    return json.dumps({"code": code, "type": "InternalError", "message": 'a "b" {', "request_id": "1"}).encode()


@contextmanager
def light_versions() -> Iterator[LightVersions]:
    seen: list[Seen] = []
    with _rest(seen) as rest, _grpc(seen) as port:
        yield LightVersions(Backend(f"http://127.0.0.1:{rest}", f"127.0.0.1:{port}"), seen)


@contextmanager
def _rest(seen: list[Seen]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Two small packets would otherwise wait for each other.
        wbufsize = -1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            named = re.match(r"/predictions/[^/?]+/([^/?]+)", self.path)
            version = named[1] if named else ""
            seen.append(Seen(version, self.path, {key.lower(): value for key, value in self.headers.items()}))
            wanted = fault(body, version)
            if wanted == "break":
                self.close_connection = True
                return
            answer = json.dumps({"version": version, "bytes": len(body)}).encode()
            status = {"fail": 500, "missing": 404, "item422": 422, "busy": 503}.get(wanted, 200)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except BrokenPipeError:
                # Whoever asked has given up.
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *arguments: object) -> None:
            """Let clients go away without a word."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _grpc(seen: list[Seen]) -> Iterator[int]:
    request, response = message_class("PredictionsRequest"), message_class("PredictionResponse")

    def predict(raw: bytes, context: Any) -> bytes:
        asked = request.FromString(raw)
        body = asked.input["body"]
        others = {name: value.decode() for name, value in asked.input.items() if name != "body"}
        seen.append(Seen(asked.model_version, PREDICTIONS, others))
        wanted = fault(body, asked.model_version)
        if wanted in ("fail", "missing"):
            context.abort(grpc.StatusCode.INTERNAL if wanted == "fail" else grpc.StatusCode.NOT_FOUND, wanted)
        answer = json.dumps({"version": asked.model_version, "bytes": len(body)}).encode()
        said = {"item500": item(500), "item422": item(422)}.get(wanted, answer)
        return bytes(response(prediction=said).SerializeToString())

    def infer(raw: bytes, context: Any) -> bytes:
        asked = oip.ModelInferRequest.FromString(raw)
        seen.append(Seen(asked.model_version, MODEL_INFER, {"id": asked.id}))
        wanted = fault(asked.inputs[0].contents.bytes_contents[0], asked.model_version)
        if wanted == "fail":
            context.abort(grpc.StatusCode.INTERNAL, wanted)
        answer = oip.ModelInferResponse(model_name=asked.model_name, model_version=asked.model_version)
        if wanted != "item500":
            answer.outputs.add(name="out", datatype="BYTES", shape=[1])
        return bytes(answer.SerializeToString())

    def stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for raw in requests:
            asked = request.FromString(raw)
            seen.append(Seen(asked.model_version, STREAM, {}))
            yield response(prediction=asked.input["body"]).SerializeToString()

    class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            unary = {PREDICTIONS: predict, MODEL_INFER: infer}.get(details.method)
            if unary:
                return grpc.unary_unary_rpc_method_handler(unary)
            return grpc.stream_stream_rpc_method_handler(stream) if details.method == STREAM else None

    server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Calls(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()
