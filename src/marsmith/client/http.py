"""HTTP transport: one request to a REST API of TorchServe, and its reply."""

from __future__ import annotations

import re
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from marsmith.client.deadline import Deadline
from marsmith.errors import ClientError, ConnectionFailedError, DeadlineError, FormatError, UsageError
from marsmith.json_reader import read_json

if TYPE_CHECKING:
    import requests

# Concurrent requests take a connection each. Connections beyond this number are not kept.
KEPT_CONNECTIONS = 64
CHUNK_BYTES = 1 << 16
# A token in the sense of RFC 9110.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Header, also of gRPC, of a request that must not be processed twice: the front sends it again only if TorchServe has
# not got it.
ONCE = ("marsmith-idempotent", "false")


@dataclass(frozen=True)
class HttpRequest:
    """One request to a REST API.

    Attributes:
        method: the HTTP method.
        url: base URL of the API, such as ``http://127.0.0.1:8080``.
        segments: path of the resource, one text for each segment. The API fixes the first one; the others are quoted,
            so that they cannot change the path.
        parameters: query parameters.
        body: content; None for no content.
        headers: further headers.
    """

    method: str
    url: str
    segments: tuple[str, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The complete URL."""
        path = "/".join([self.segments[0], *map(_quoted, self.segments[1:])])
        query = f"?{urlencode(self.parameters)}" if self.parameters else ""
        return f"{self.url.rstrip('/')}/{path}{query}"


@dataclass(frozen=True)
class HttpReply:
    """The reply to one request.

    Attributes:
        status: HTTP status code.
        content_type: content type of the reply; empty if the server sent none, and over gRPC, which drops it.
        headers: headers with lower-case names.
        body: content.
    """

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body as JSON.

        Raises:
            FormatError: it is not JSON.
        """
        try:
            return read_json(self.body)
        except ValueError as error:
            raise FormatError("the reply", [f"not JSON: {error}"]) from None


class Transport:
    """Sends requests over persistent connections; may be used by several threads."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """Create a transport.

        Args:
            ca_file: trusted certificates in PEM; None: those of certifi.
        """
        import requests

        from marsmith.client.timed_connections import TimedAdapter

        self._session = requests.Session()
        # The proxies of the environment are wrong for a server on this machine, and a .netrc would replace the token.
        self._session.trust_env = False
        self._session.verify = str(readable_ca(ca_file)) if ca_file else True
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, TimedAdapter(pool_maxsize=KEPT_CONNECTIONS))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def send(self, request: HttpRequest, *, token: str | None, deadline_s: float) -> HttpReply:
        """Send ``request`` and return the reply with any status.

        Raises:
            UsageError: a header is invalid.
            ConnectionFailedError: the server does not accept connections, its certificate is not trusted, or the
                connection broke.
            DeadlineError: the reply was not complete after ``deadline_s`` seconds, whatever the reason.
        """
        return joined(list(self.stream(request, token=token, deadline_s=deadline_s)))

    def stream(self, request: HttpRequest, *, token: str | None, deadline_s: float) -> Generator[HttpReply, None, None]:
        """Send ``request`` and yield a reply for each part of the answer as it arrives; at least one.

        Raises:
            UsageError, ConnectionFailedError, DeadlineError: as ``send``.
        """
        import requests

        from marsmith.client.timed_connections import NotConnected, OutOfTime

        headers, deadline = headers_of(request, token), Deadline(deadline_s)
        check_address(request.url)
        try:
            with self._start(request, headers, deadline) as response:
                yield from _parts(response)
        except OutOfTime as late:
            raise missed(request.url, deadline_s, late.doing) from None
        except NotConnected as nobody:
            raise not_connected(request.url, nobody.error) from None
        except requests.RequestException as error:
            raise _failure(request.url, error) from None

    def _start(self, request: HttpRequest, headers: Mapping[str, str], deadline: Deadline) -> requests.Response:
        import requests

        from marsmith.client.timed_connections import ends_with

        prepared = self._session.prepare_request(
            requests.Request(request.method, request.url, data=request.body, headers=dict(headers))
        )
        # Set afterwards, because requests would undo the percent-encoding of _quoted.
        prepared.url = request.address
        with ends_with(deadline):
            return self._session.send(prepared, stream=True, allow_redirects=False)


def headers_of(request: HttpRequest, token: str | None) -> dict[str, str]:
    """Return all headers: those of the request, and the token.

    Raises:
        UsageError: a header is invalid.
    """
    headers = {**request.headers, **({"Authorization": f"Bearer {token}"} if token else {})}
    return {name: sendable(name, value) for name, value in headers.items()}


def sendable(name: str, value: str) -> str:
    """Return the value of a header without surrounding space.

    Raises:
        UsageError: the name is invalid, or the value contains invalid characters. A line break would start another
            header.
    """
    if not _HEADER_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not the name of a header", tip="letters, digits and -, as in X-Request-Id")
    sent = value.strip(" \t")
    wrong = next((character for character in sent if not (character == "\t" or " " <= character <= "~")), None)
    if wrong is None:
        return sent
    what = "a line break" if wrong in "\r\n" else repr(wrong)
    raise UsageError(
        f"the value of the header {name} holds {what}: a header is one line of ASCII",
        tip="take the line break out" if wrong in "\r\n" else "percent-encode it, or send it in the body",
    )


def check_address(url: str) -> None:
    """Check that ``url`` is the base URL of an API.

    Raises:
        ConnectionFailedError: it is not; the message says why.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        # The port is not a number or too large, or the brackets of an IPv6 address do not match.
        raise no_address(url, str(error)) from None
    if any(character <= " " or character == "\x7f" for character in url):
        raise no_address(url, "it holds a space or a line break")
    if parts.scheme not in {"http", "https"}:
        raise no_address(
            url, f"{parts.scheme} is neither http nor https" if parts.scheme else "it does not start with http://"
        )
    if not host:
        raise no_address(url, "it has no host")


def joined(parts: Sequence[HttpReply]) -> HttpReply:
    """Return one reply with the joined bodies of all parts."""
    first = parts[0]
    return HttpReply(first.status, first.content_type, first.headers, b"".join(part.body for part in parts))


def readable_ca(path: Path) -> Path:
    """Return ``path``, a file of certificates, after a check that it can be read.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the certificates in {path}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise UsageError(f"{path} holds no certificate in PEM", tip="marsmith certificate makes one for development")
    return path


def _quoted(segment: str) -> str:
    """Quote a path segment, including ``.`` and ``..``.

    With tokens on, TorchServe treats any management request that contains the text ``/token`` as a request to its token
    API. A model named ``tokenizer`` could then not be managed. Written as ``/%74okenizer`` it can.
    """
    if segment in {".", ".."}:
        return segment.replace(".", "%2E")
    text = quote(segment, safe="")
    return f"%{ord('t'):x}{text[1:]}" if text.startswith("token") else text


def _parts(response: requests.Response) -> Iterator[HttpReply]:
    headers = {name.lower(): value for name, value in response.headers.items()}
    kind, empty = headers.get("content-type", ""), True
    # Without a size the parts come as the server sent them. A whole body is read in larger pieces than single packets.
    size = None if headers.get("transfer-encoding") == "chunked" else CHUNK_BYTES
    for body in response.iter_content(size):
        empty = False
        yield HttpReply(response.status_code, kind, headers, body)
    if empty:
        yield HttpReply(response.status_code, kind, headers, b"")


def _failure(url: str, error: Exception) -> ClientError:
    """Map an exception of an established connection to the client's error."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return not_trusted(url, str(error))
    if isinstance(error, ValueError):
        return no_address(url, str(error))
    return not_http(url) if "BadStatusLine" in repr(error) else broken(url)


def missed(url: str, deadline_s: float, doing: str = "") -> DeadlineError:
    """Return the error for a reply that did not arrive in time; ``doing`` is the last step of the call."""
    return DeadlineError(
        f"{doing}{': ' if doing else ''}no answer from {url} within {deadline_s:.3g} s",
        address=url,
        doing=doing,
        tip="marsmith models shows whether its workers are ready",
    )


def no_address(url: str, reason: str) -> ConnectionFailedError:
    """Return the error for an invalid URL."""
    return ConnectionFailedError(
        f"{url!r} is not the address of a server: {reason}", tip="write it as http://127.0.0.1:8080"
    )


def not_connected(url: str, error: OSError) -> ConnectionFailedError:
    """Return the error for a connection that could not be established."""
    if isinstance(error, socket.gaierror):
        host = urlsplit(url).hostname
        return ConnectionFailedError(f"{url}: the host {host} is unknown", refused=True)
    if isinstance(error, ConnectionRefusedError):
        return unreachable(url)
    return ConnectionFailedError(f"cannot connect to {url}: {error.strerror or error}", refused=True)


def unreachable(url: str) -> ConnectionFailedError:
    """Return the error for an address without a server."""
    return ConnectionFailedError(f"nothing listens at {url}", refused=True, tip="marsmith serve")


def not_http(url: str) -> ConnectionFailedError:
    """Return the error for a server that does not answer in HTTP."""
    return ConnectionFailedError(
        f"the server at {url} does not answer in HTTP",
        tip="it may speak TLS (call it as https://), or be an address of gRPC",
    )


def broken(url: str) -> ConnectionFailedError:
    """Return the error for a connection that broke before the reply was complete."""
    return ConnectionFailedError(f"the connection to {url} broke", sent=True, tip="marsmith serve")


def not_trusted(url: str, reason: str) -> ConnectionFailedError:
    """Return the error for a failed TLS handshake."""
    if "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason:
        return ConnectionFailedError(f"{url} does not speak TLS", tip="call it as http://, without a certificate")
    cause = re.search(r"certificate verify failed: ([^(\n]+)|CERTIFICATE_VERIFY_FAILED", reason)
    detail = f": {cause[1].strip()}" if cause and cause[1] else ""
    return ConnectionFailedError(
        f"the certificate of {url} cannot be trusted{detail}",
        tip="ca_file names the certificates to trust: that of the server itself where it is self-signed",
    )
