"""What can go wrong, as one tree.

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
    │   ├── HostileArchiveError    its structure is dangerous or lies
    │   └── VerificationError      its content is not what it says
    ├── HandlerError               a handler that does not load, or breaks its contract
    ├── ServerError                TorchServe did not start, run or stop as asked
    │   ├── PreflightError         it was not started, because it could not have worked
    │   ├── FatalArchiveError      TorchServe ended while it loaded an archive
    │   ├── WorkerDiedError        a worker died; carries the first traceback
    │   └── NotRunningError        no server runs here
    └── ClientError                a request did not get its answer
        ├── ConnectionFailedError  nothing listens there
        ├── AuthorizationError     the token is missing, wrong or expired
        ├── NotFoundError          no such model or version is registered
        ├── NoWorkerError          the version has no worker that could answer
        ├── OverloadedError        the job queue is full
        ├── DeadlineError          no answer in time
        └── RequestRejectedError   the server or the handler refused the request; carries status and body

The library raises these and never prints; ``marsmith.cli`` turns them into messages and exit codes, in one place.
"""

from __future__ import annotations

from typing import ClassVar


class MarsmithError(Exception):
    """Base of all errors that marsmith raises on purpose.

    Attributes:
        message: what is wrong, naming the thing that is wrong.
        tip: what to do next, ideally a command to type; None where nothing general can be said.
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
    """An archive under the name of a version that is bound to other bytes; the message has both digests."""


class ProjectError(MarsmithError):
    """There is no marsmith project here, or its layout is broken."""


class AccessError(MarsmithError):
    """The system refuses a file or a folder: it may not be read or written, or its disk is full."""


class MissingDependencyError(MarsmithError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"the package {package!r} is not installed", tip=f"pip install 'marsmith[{extra}]'")


class FormatError(MarsmithError):
    """A text that does not follow its format; carries every problem found, not only the first.

    Attributes:
        source: the file, or another name for where the text came from.
        problems: one sentence a problem.
    """

    def __init__(self, source: str, problems: list[str], *, tip: str | None = None) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems), tip=tip)
        self.source = source
        self.problems = tuple(problems)


class SpecError(FormatError):
    """A model spec that does not follow its format."""


class ConfigError(FormatError):
    """A server config or model config that does not follow its format."""


class ExportError(MarsmithError):
    """Weights did not become a serialized file."""


class ArchiveError(MarsmithError):
    """A model archive could not be built, opened or trusted."""


class BuildError(ArchiveError):
    """The inputs of a model archive are wrong."""


class HostileArchiveError(ArchiveError):
    """The structure of an archive is dangerous, or lies about itself."""


class VerificationError(ArchiveError):
    """The content of an archive is not what it says."""


class HandlerError(MarsmithError):
    """A handler does not load, or breaks its contract."""


class ServerError(MarsmithError):
    """TorchServe did not start, run or stop as asked."""


class PreflightError(ServerError):
    """The server was not started, because it could not have worked."""


class FatalArchiveError(ServerError):
    """TorchServe ended while it loaded an archive.

    Attributes:
        file: the archive's name in the store, or its URL.
        reason: why, in one line.
    """

    def __init__(self, file: str, reason: str, *, tip: str | None = None) -> None:
        super().__init__(f"TorchServe ended while it loaded {file}: {reason}", tip=tip)
        self.file = file
        self.reason = reason


class WorkerDiedError(ServerError):
    """A worker died.

    Attributes:
        traceback: the first Python traceback that the worker printed; None where it printed none.
    """

    def __init__(self, message: str, *, traceback: str | None, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.traceback = traceback


class NotRunningError(ServerError):
    """No server runs here."""


class ClientError(MarsmithError):
    """A request did not get its answer."""


class ConnectionFailedError(ClientError):
    """Nothing listens at the address, its certificate cannot be trusted, or the connection broke.

    Attributes:
        sent: whether the request may have reached the server.
        refused: whether nothing listens there, now.
    """

    def __init__(self, message: str, *, sent: bool = False, refused: bool = False, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.sent = sent
        self.refused = refused


class AuthorizationError(ClientError):
    """The token is missing, wrong or expired."""


class NotFoundError(ClientError):
    """No such model, or no such version of it, is registered."""


class NoWorkerError(ClientError):
    """The version has no worker that could answer.

    Attributes:
        restarting: whether it is meant to have workers, so that waiting may help.
    """

    def __init__(self, message: str, *, restarting: bool = False, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.restarting = restarting


class OverloadedError(ClientError):
    """The job queue of the version is full.

    Attributes:
        retry_after_s: when it is worth to try again, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.5, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.retry_after_s = retry_after_s


class DeadlineError(ClientError):
    """No answer came in time.

    Attributes:
        address: what was asked, where it gave no sign; empty where somebody told that it is too late.
        doing: what the call was doing, in words; empty where that is not known.
    """

    def __init__(self, message: str, *, address: str = "", doing: str = "", tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.address = address
        self.doing = doing


class RequestRejectedError(ClientError):
    """The server or the handler refused the request.

    Attributes:
        status: HTTP status code.
        body: the reply as it came.
    """

    def __init__(self, message: str, *, status: int, body: bytes, tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.status = status
        self.body = body
