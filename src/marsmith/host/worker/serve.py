"""The loop of a worker: load the archive, then answer batches until the front closes the socket.

A batch is processed as TorchServe's worker does it, with the same failures: an exception fails the whole batch, unless
the handler isolates its items, as ours do.
"""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from marsmith.host.frames import ByteSource, Frame, encode, read_frame
from marsmith.host.worker.fields import MOST_FIELDS, FormError, TooManyFieldsError, fields_of
from marsmith.host.worker.loading import Handle, LoadError, load_handler
from marsmith.host.worker.metrics import WorkerMetrics
from marsmith.runtime.handler_context import HandlerContext
from marsmith.runtime.worker_protocol import Prediction, decode_response

logger = logging.getLogger(__name__)
_BUFFER = 1 << 20
# A token, and a value without control characters: RFC 9110, sections 5.1 and 5.5.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class BatchError(Exception):
    """The whole batch fails, with a status and a short reason."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def serve(descriptor: int) -> int:
    """Run the worker on a connected socket; return the exit status of the process."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb", _BUFFER) as source:
        order = read_frame(source)
        if order is None:
            return 1
        service = _load(connection, order)
        if service is None:
            return 1
        # The front may go away while a reply is sent; then nobody waits for it.
        with suppress(BrokenPipeError, ConnectionResetError):
            service.run(source)
    return 0


def _load(connection: socket.socket, order: Frame) -> Service | None:
    try:
        service = Service(connection, order)
    except Exception as error:
        reason = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
        _send(connection, encode("failed", {"message": reason, "traceback": traceback.format_exc()}))
        return None
    _send(connection, encode("loaded", {}))
    return service


class Service:
    """One loaded archive, and the socket of its front."""

    def __init__(self, connection: socket.socket, order: Frame) -> None:
        said = order.head
        self._connection = connection
        self._most_fields = max(MOST_FIELDS, int(said["most_items"]))
        folder = Path(said["folder"])
        context: Any = HandlerContext(
            folder, model_yaml_config=said["config"], batch_size=said["batch_size"], gpu_id=said["gpu_id"]
        )
        context.model_name = said["model"]
        self._context: HandlerContext = context
        self._metrics = context.metrics = WorkerMetrics(said["model"])
        self._handle: Handle = load_handler(folder, said["handler"], self._context)
        context.cl_socket = _Parts(self)

    def run(self, source: ByteSource) -> None:
        """Answer batches until the socket is closed."""
        while (batch := read_frame(source)) is not None:
            self._answer(batch)

    def _answer(self, batch: Frame) -> None:
        ids = [str(request["id"]) for request in batch.head["requests"]]
        replies: dict[str, tuple[dict[str, Any], bytes]] = {}
        rows, headers, taken = [], [], []
        for request, blocks in _requests(batch):
            try:
                row, its = fields_of(request, blocks, self._most_fields)
            except FormError as error:
                # TorchServe's frontend refuses it, in its own form.
                replies[request["id"]] = {"failed": [500, str(error), "ErrorDataDecoderException"]}, b""
            except (TooManyFieldsError, ValueError):
                told = f"a form with more than {self._most_fields} fields"
                replies[request["id"]] = _refusal(413, "ContentTooLarge", told, request["id"])
            else:
                rows.append(row)
                headers.append(its)
                taken.append(str(request["id"]))
        if rows:
            replies |= self._handled(taken, rows, headers)
        self._reply("replies", [replies[each] for each in ids])

    def _handled(
        self, ids: list[str], rows: list[dict[str, Any]], headers: list[dict[str, Any]]
    ) -> dict[str, tuple[dict[str, Any], bytes]]:
        context = self._context
        context.begin(ids, headers)
        self._metrics.request_ids = context.request_ids
        try:
            bodies = _bodies(self._called(rows), len(rows))
        except BatchError as error:
            failed = {"failed": [error.code, error.message, "InternalServerException"]}
            return dict.fromkeys(ids, (failed, b""))
        heads = (
            _head(context.get_response_status(index)[0], context.get_response_headers(index))
            for index in range(len(ids))
        )
        return {each: (head, body) for each, head, body in zip(ids, heads, bodies, strict=True)}

    def _called(self, rows: list[dict[str, Any]]) -> Any:
        """Call the handler; raises BatchError as TorchServe fails a batch."""
        try:
            return self._handle(rows, self._context)
        except MemoryError:
            logger.exception("out of memory")
            raise BatchError(507, "Out of resources") from None
        except Exception as error:
            # TorchServe's own class, which need not be installed here.
            if type(error).__name__ == "PredictionException" and hasattr(error, "error_code"):
                raise BatchError(int(error.error_code), str(getattr(error, "message", error))) from None
            logger.warning("the handler raised an exception", exc_info=True)
            if "CUDA" in str(error):
                raise BatchError(507, "Out of resources") from None
            raise BatchError(503, "Prediction failed") from None

    def part(self, predictions: Sequence[Prediction]) -> None:
        """Send a part of the replies, while the handler goes on."""
        self._reply("part", [({"status": one.status, "headers": dict(one.headers)}, one.body) for one in predictions])

    def _reply(self, kind: str, replies: Sequence[tuple[dict[str, Any], bytes]]) -> None:
        head = {"replies": [one for one, _ in replies], "metrics": self._metrics.take()}
        _send(self._connection, encode(kind, head, [body for _, body in replies]))


class _Parts:
    """What a streaming handler takes for the socket of TorchServe's frontend."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def sendall(self, data: bytes) -> None:
        """Forward a response in TorchServe's own protocol."""
        self._service.part(decode_response(io.BytesIO(bytes(data))).predictions)


def _requests(batch: Frame) -> list[tuple[dict[str, Any], tuple[bytes, ...]]]:
    """Return the requests of a batch, each with its blocks."""
    found, at = [], 0
    for request in batch.head["requests"]:
        count = 1 if request["parts"] is None else len(request["parts"])
        found.append((request, batch.blocks[at : at + count]))
        at += count
    return found


def _bodies(replies: Any, count: int) -> list[bytes]:
    """Return the bytes of each reply; raises BatchError for what TorchServe refuses from a handler."""
    if not isinstance(replies, list):
        raise BatchError(503, "Invalid model predict output")
    if len(replies) != count:
        raise BatchError(503, "number of batch response mismatched")
    try:
        return [_body(reply) for reply in replies]
    except (TypeError, ValueError, RecursionError):
        logger.warning("a reply is neither text nor bytes nor JSON", exc_info=True)
        raise BatchError(503, "Unsupported model output data type.") from None


def _head(status: Any, headers: Mapping[Any, Any]) -> dict[str, Any]:
    """Return status and headers of a reply, or its failure if HTTP cannot carry them."""
    if not hasattr(status, "__index__") or not 200 <= status <= 599:
        told = f"the handler set the status {status!r}, which is not from 200 to 599"
        return {"failed": [500, told, "InternalServerException"]}
    for name, value in headers.items():
        if not _NAME.fullmatch(str(name)) or not _VALUE.fullmatch(str(value)):
            told = f"the handler set the header {name!r} to {value!r}, which HTTP does not allow"
            return {"failed": [500, told, "InternalServerException"]}
    return {"status": int(status), "headers": {str(name): str(value) for name, value in headers.items()}}


def _body(reply: Any) -> bytes:
    if isinstance(reply, bytes | bytearray):
        return bytes(reply)
    if isinstance(reply, str):
        return reply.encode()
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(reply, torch.Tensor):
        saved = io.BytesIO()
        torch.save(reply, saved)
        return saved.getvalue()
    return json.dumps(reply, indent=2).encode()


def _refusal(code: int, kind: str, message: str, request_id: str) -> tuple[dict[str, Any], bytes]:
    """Return the reply to a request that the handler does not get, in the form of our handlers' errors."""
    said = {"code": code, "type": kind, "message": message, "request_id": request_id}
    headers = {"content-type": "application/json"}
    return {"status": code, "headers": headers}, json.dumps(said).encode()


def _send(connection: socket.socket, parts: Sequence[bytes | bytearray]) -> None:
    connection.sendall(b"".join(parts))
