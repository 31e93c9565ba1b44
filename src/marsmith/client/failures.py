"""Classification of replies: whether a reply is an answer, and which client error it means otherwise.

Both clients, the load driver, and the probes of deploy and tune use this module. TorchServe answers 400 to a wrong
token, says "no worker" if a job queue is full, and drops the status over gRPC. Its JSON names a Java exception. This
distinguishes its errors from those of a handler.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marsmith.client.http import HttpReply
from marsmith.errors import (
    AuthorizationError,
    ClientError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    RequestRejectedError,
)
from marsmith.json_reader import read_json

INVALID_TOKEN = "InvalidKeyException"  # noqa: S105, the name of a Java class
NOT_FOUND = frozenset({"ModelNotFoundException", "ModelVersionNotFoundException", "ResourceNotFoundException"})
# TorchServe's text if a job was not taken: there is no worker, or the job queue is full.
NOT_TAKEN = "has no worker to serve"
# A host's name of a full job queue; TorchServe says that there is no worker.
TOO_MANY = "TooManyRequestsException"
_RETRY_AFTER_S = 0.5
# TorchServe's texts if a worker was lost while it processed the request.
WORKER_LOST = frozenset({"Worker died.", "Worker scaled down."})
# 507 if the process was killed by signal 9; this is 429 over gRPC.
_LOSS_STATUS = frozenset({429, 500, 507})

_TIPS = {
    403: "the default version cannot be unregistered while there are others: marsmith set-default MODEL VERSION first",
    405: "the server config must say enable_model_api=true",
    409: "this version is registered already: marsmith models",
    413: "the body is larger than the server config's max_request_size",
    499: "the server cancelled the call, as it does when the body is larger than its max_request_size",
    500: "a worker died, or took longer than responseTimeout; see its last lines in the server's model_log.log",
    503: "the handler raised an exception; the server's model_log.log has its traceback",
    507: "a worker ran out of memory; use a smaller batchSize or fewer workers",
}
# TorchServe gives no more details, not even in its logs.
_NOT_UNPACKED = "Failed to save model: "
_NOT_UNPACKED_TIP = (
    "the server could not unpack the archive: the disk of its temporary folder is full (marsmith doctor), or the "
    "archive is damaged or hostile (marsmith verify ARCHIVE)"
)


ANSWERED = range(200, 300)
# KServe: a failed request has "an HTTP error status (typically 400)"; its body does not repeat it.
_KSERVE_STATUS = 400
_KSERVE_TYPE = "InferenceError"
_STATED = frozenset({"code", "type", "message"})
_KSERVE_IDENTITY = frozenset({"id", "model_name", "model_version", "parameters", "outputs"})
_CLASS_NAME = re.compile(r"[A-Z]\w*")


@dataclass(frozen=True)
class Problem:
    """An error that TorchServe, our handlers or those of KServe return."""

    code: int
    type: str
    message: str


def problem_in(body: bytes) -> Problem | None:
    """Return the problem that ``body`` states, or None. The body must have exactly one of these forms.

    - TorchServe's: ``code`` (400 to 599), ``type`` (named as classes are) and ``message``.
    - Our handlers': the same with any ``type``, and ``request_id``. In a KServe v2 reply also ``error``
      (the message again), ``id``, ``model_name``, ``model_version`` and ``outputs``, which are empty.
    - KServe v1: ``error``, a text, and nothing else.
    - KServe v2: ``error``, a text, with the fields that identify the request; no ``outputs`` with content.

    With a missing, an additional or another field it is an answer: models may have a label ``error``, and predict codes
    and types.
    """
    # Replies may be large, and most are answers, so check the size first.
    if not (b'"error"' in body or b'"message"' in body) or not body.lstrip().startswith(b"{"):
        return None
    try:
        data = read_json(body)
    except ValueError:
        return None
    return _stated_in(data) or _kserve_error_in(data)


def _stated_in(data: Mapping[str, Any]) -> Problem | None:
    code, kind, message = data.get("code"), data.get("type"), data.get("message")
    if type(code) is not int or not 400 <= code <= 599 or not isinstance(kind, str) or not isinstance(message, str):
        return None
    further = data.keys() - _STATED
    if isinstance(data.get("request_id"), str):
        as_v2 = data.get("error") == message and not data.get("outputs")
        is_problem = further == {"request_id"} or (as_v2 and further <= {"request_id", "error", *_KSERVE_IDENTITY})
    else:
        is_problem = not further and bool(_CLASS_NAME.fullmatch(kind))
    return Problem(code, kind, message) if is_problem else None


def _kserve_error_in(data: Mapping[str, Any]) -> Problem | None:
    message = data.get("error")
    if not isinstance(message, str) or not message or data.get("outputs") or data.keys() - {"error", *_KSERVE_IDENTITY}:
        return None
    return Problem(_KSERVE_STATUS, _KSERVE_TYPE, message)


def restore_status(reply: HttpReply) -> HttpReply:
    """Give a reply that came over gRPC the status in its body, because gRPC drops the status."""
    problem = problem_in(reply.body)
    return reply if problem is None else HttpReply(problem.code, "application/json", reply.headers, reply.body)


def is_answer(reply: HttpReply) -> bool:
    """Return whether the reply is an answer. A reply over gRPC needs ``restore_status`` first."""
    return reply.status in ANSWERED


def is_authorization_failure(reply: HttpReply) -> bool:
    """Return whether the server refused the token."""
    problem = problem_in(reply.body) if reply.status == 400 else None
    return problem is not None and problem.type == INVALID_TOKEN


def was_not_taken(reply: HttpReply) -> bool:
    """Return whether the server took no job from the request: it has no worker, or its job queue is full."""
    problem = problem_in(reply.body) if reply.status == 503 else None
    return problem is not None and problem.type == "ServiceUnavailableException" and NOT_TAKEN in problem.message


def is_worker_loss(status: int, body: bytes) -> bool:
    """Return whether a reply says that the worker was lost while it processed the request.

    TorchServe says the same if a worker exceeded its response timeout and was ended.
    """
    problem = problem_in(body) if status in _LOSS_STATUS else None
    return problem is not None and problem.type == "InternalServerException" and problem.message in WORKER_LOST


def failure(reply: HttpReply, subject: str) -> ClientError | None:
    """Return the error that the reply states about ``subject`` (a model, an archive).

    None if the reply is an answer.
    """
    if is_answer(reply):
        return None
    problem = problem_in(reply.body)
    kind = problem.type if problem else ""
    message = f"{subject}: {_message(reply, problem)}"
    if reply.status == 400 and kind == INVALID_TOKEN:
        return AuthorizationError(
            f"{subject}: the server refused the token: it is missing, wrong, expired or of another role",
            tip="marsmith token inference prints a good one",
        )
    if reply.status == 404 and kind in NOT_FOUND:
        return NotFoundError(message)
    if reply.status == 408:
        return DeadlineError(message)
    if reply.status == 429 and kind == TOO_MANY:
        return OverloadedError(message, retry_after_s=_retry_after_s(reply), tip="send it again later, or more workers")
    return RequestRejectedError(message, status=reply.status, body=reply.body, tip=_tip(reply.status, problem))


def _retry_after_s(reply: HttpReply) -> float:
    """Return what the header Retry-After says, in seconds."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else _RETRY_AFTER_S


def _tip(status: int, problem: Problem | None) -> str | None:
    """Return a tip for an error of the server itself. Errors of handlers explain themselves."""
    by_handler = problem is not None and not (problem.type.endswith("Exception") or problem.type.isupper())
    if problem is not None and problem.message.startswith(_NOT_UNPACKED):
        return _NOT_UNPACKED_TIP
    return None if by_handler else _TIPS.get(status)


def _message(reply: HttpReply, problem: Problem | None) -> str:
    if problem:
        return f"{problem.message} ({reply.status} {problem.type})"
    text = reply.body[:200].decode("utf-8", "replace").strip()
    return f"status {reply.status}{f': {text}' if text else ''}"


def reply_of(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> HttpReply:
    """Build the reply of TorchServe's REST API for a failure of another kind."""
    body = json.dumps({"code": status, "type": kind, "message": message}).encode()
    return HttpReply(status, "application/json", headers or {}, body)
