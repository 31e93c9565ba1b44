"""Errors of marsmith, as one hierarchy.

::

    MarsmithError                  exit code 1
    ├── UsageError                 exit code 2: the command line itself is wrong
    │   └── OtherBytesError        an archive under the name of a version that is bound to other bytes
    ├── ProjectError               no project here, or its layout is broken
    ├── AccessError                the system refuses a file or a folder
    ├── MissingDependencyError     an optional package is not installed
    ├── FormatError                a text that does not follow its format
    │   ├── SpecError              a model spec
    │   └── ConfigError            a server config or a model config
    ├── ExportError                weights did not become a serialized file
    ├── ArchiveError               a model archive could not be built, opened or trusted
    │   ├── BuildError             its inputs are wrong
    │   ├── HostileArchiveError    its structure is dangerous or inconsistent
    │   └── VerificationError      its content does not match its digests
    ├── HandlerError               a handler that does not load, or breaks its contract
    ├── BatchError                 a batch did not run to its end, or its destination has another plan
    ├── ServerError                TorchServe did not start, run or stop as asked
    │   ├── PreflightError         it was not started, because a check failed
    │   ├── FrontError             Envoy did not start, or refused its configuration
    │   ├── FatalArchiveError      TorchServe ended while it loaded an archive
    │   ├── WorkerDiedError        a worker died; has the first traceback
    │   └── NotRunningError        the server is not running
    ├── MonitoringError            Prometheus or Alertmanager did not start or run
    └── ClientError                a request was not answered
        ├── ConnectionFailedError  the server does not accept connections
        ├── AuthorizationError     the token is missing, wrong or expired
        ├── NotFoundError          no such model or version is registered
        ├── NoWorkerError          the version has no worker that could answer
        ├── OverloadedError        the job queue is full
        ├── DeadlineError          no answer in time
        └── RequestRejectedError   the server or the handler refused the request; has status and body

The library raises these and never prints; ``marsmith.cli`` turns them into messages and exit codes, in one place.
"""

from __future__ import annotations

from typing import ClassVar


class MarsmithError(Exception):
    """Base of all errors that marsmith raises on purpose.

    Attributes:
        message: the problem, with the name of the thing concerned.
        tip: what to do next, preferably a command to type; None if there is no general advice.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, tip: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip


class UsageError(MarsmithError):
    """The command line itself is wrong."""

    exit_code = 2


class OtherBytesError(UsageError):
    """An archive under the name of a version that is bound to another digest; the message has both digests."""


class ProjectError(MarsmithError):
    """There is no marsmith project here, or its layout is broken."""


class AccessError(MarsmithError):
    """The system refuses a file or a folder: it may not be read or written, or its disk is full."""


class MissingDependencyError(MarsmithError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"the package {package!r} is not installed", tip=f"pip install 'marsmith[{extra}]'")


class FormatError(MarsmithError):
    """A text that violates its format, with all problems.

    Attributes:
        source: the file, or another name for the origin of the text.
        problems: one sentence per problem.
    """

    def __init__(self, source: str, problems: list[str], *, tip: str | None = None) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems), tip=tip)
        self.source = source
        self.problems = tuple(problems)


class SpecError(FormatError):
    """A model spec violates its format."""


class ConfigError(FormatError):
    """A server config or model config violates its format."""


class ExportError(MarsmithError):
    """Weights did not become a serialized file."""


class ArchiveError(MarsmithError):
    """A model archive could not be built, opened or trusted."""


class BuildError(ArchiveError):
    """The inputs of a model archive are wrong."""


class HostileArchiveError(ArchiveError):
    """The structure of an archive is dangerous or inconsistent."""


class VerificationError(ArchiveError):
    """The content of an archive does not match its digests."""


class HandlerError(MarsmithError):
    """A handler does not load, or breaks its contract."""


class BatchError(MarsmithError):
    """A batch did not run to its end, or its destination has another plan; parts that were written stay valid."""


class ServerError(MarsmithError):
    """TorchServe did not start, run or stop as asked."""


class PreflightError(ServerError):
    """The server was not started, because a check failed."""


class FrontError(ServerError):
    """The front, Envoy, did not start, or refused its configuration."""


class FatalArchiveError(ServerError):
    """TorchServe ended while it loaded an archive.

    Attributes:
        file: the archive's name in the store, or its URL.
        reason: reason in one line.
    """

    def __init__(self, file: str, reason: str, *, tip: str | None = None) -> None:
        super().__init__(f"TorchServe ended while it loaded {file}: {reason}", tip=tip)
        self.file = file
        self.reason = reason


class WorkerDiedError(ServerError):
    """A worker died.

    Attributes:
        traceback: first Python traceback that the worker printed; None if there was none.
    """

    def __init__(self, message: str, *, traceback: str | None, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.traceback = traceback


class NotRunningError(ServerError):
    """The server is not running."""


class MonitoringError(MarsmithError):
    """Prometheus or Alertmanager did not start or run."""


class ClientError(MarsmithError):
    """A request was not answered."""


class ConnectionFailedError(ClientError):
    """The server does not accept connections, its certificate is not trusted, or the connection broke.

    Attributes:
        sent: whether the request may have reached the server.
        refused: whether no process listens at the address now.
    """

    def __init__(self, message: str, *, sent: bool = False, refused: bool = False, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.sent = sent
        self.refused = refused


class AuthorizationError(ClientError):
    """The token is missing, wrong or expired."""


class NotFoundError(ClientError):
    """The model or the version is not registered."""


class NoWorkerError(ClientError):
    """The version has no worker that could answer.

    Attributes:
        restarting: whether it should have workers, so that waiting may help.
    """

    def __init__(self, message: str, *, restarting: bool = False, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.restarting = restarting


class OverloadedError(ClientError):
    """The job queue of the version is full.

    Attributes:
        retry_after_s: time until a retry is useful, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.5, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.retry_after_s = retry_after_s


class DeadlineError(ClientError):
    """The answer did not arrive in time.

    Attributes:
        address: address without a reply; empty if another process reported the timeout.
        doing: step of the call; empty if it is unknown.
    """

    def __init__(self, message: str, *, address: str = "", doing: str = "", tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.address = address
        self.doing = doing


class RequestRejectedError(ClientError):
    """The server or the handler refused the request.

    Attributes:
        status: HTTP status code.
        body: content of the reply.
    """

    def __init__(self, message: str, *, status: int, body: bytes, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.status = status
        self.body = body
