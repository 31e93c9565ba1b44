"""One request to one of TorchServe's REST APIs, and the reply to it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from marsmith.errors import ClientError, ConnectionFailedError, DeadlineError, FormatError, UsageError

if TYPE_CHECKING:
    import requests

# Requests that run at the same time each take a connection; beyond this many, connections are not kept.
KEPT_CONNECTIONS = 64
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """One request to a REST API.

    Attributes:
        method: the HTTP method.
        url: base URL of the API, as ``http://127.0.0.1:8080``.
        segments: path of the resource, one text a segment, the first of them fixed by the API; the others are quoted,
            so that none can leave its place.
        parameters: the query.
        body: the content; None sends none.
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
        """The whole URL."""
        path = "/".join([self.segments[0], *map(_quoted, self.segments[1:])])
        query = f"?{urlencode(self.parameters)}" if self.parameters else ""
        return f"{self.url.rstrip('/')}/{path}{query}"


@dataclass(frozen=True)
class Reply:
    """The reply to one request.

    Attributes:
        status: HTTP status code.
        content_type: as the server sent it; empty where it sent none, and over gRPC, which drops it.
        headers: with their names in lower case.
        body: the content.
    """

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, parsed as JSON.

        Raises:
            FormatError: it is not JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise FormatError("the reply", [f"not JSON: {error}"]) from None


class Transport:
    """Sends requests over connections that are kept open; may be used by several threads."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """Create a transport.

        Args:
            ca_file: certificates that a server's own is checked against, in PEM; None: those that certifi knows.
        """
        import requests
        from requests.adapters import HTTPAdapter

        self._session = requests.Session()
        # The environment's proxies are not meant for a server on this machine, and a .netrc would replace the token.
        self._session.trust_env = False
        self._session.verify = str(readable_ca(ca_file)) if ca_file else True
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=KEPT_CONNECTIONS))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def send(self, request: Request, *, token: str | None, deadline_s: float) -> Reply:
        """Send ``request`` and return the reply, whatever its status.

        Raises:
            ConnectionFailedError: nothing listens there, its certificate is not trusted, or the connection broke.
            DeadlineError: the reply was not complete after ``deadline_s`` seconds.
        """
        return joined(list(self.stream(request, token=token, deadline_s=deadline_s)))

    def stream(self, request: Request, *, token: str | None, deadline_s: float) -> Generator[Reply, None, None]:
        """Send ``request`` and yield a reply for each part of the answer, as it comes; at least one.

        Raises:
            ConnectionFailedError, DeadlineError: as ``send``.
        """
        import requests

        late = time.monotonic() + deadline_s
        try:
            with self._start(request, token, deadline_s) as response:
                yield from _parts(response, late)
        except (requests.RequestException, TimeoutError) as error:
            raise _failure(request.url, error, deadline_s) from None

    def _start(self, request: Request, token: str | None, timeout_s: float) -> requests.Response:
        import requests

        prepared = self._session.prepare_request(
            requests.Request(request.method, request.url, data=request.body, headers=headers_of(request, token))
        )
        # Set afterwards: requests would take the percent-encoding of _quoted back.
        prepared.url = request.address
        return self._session.send(prepared, stream=True, timeout=timeout_s, allow_redirects=False)


def headers_of(request: Request, token: str | None) -> dict[str, str]:
    """Return the headers to send: those of the request, and the token."""
    return {**request.headers, **({"Authorization": f"Bearer {token}"} if token else {})}


def joined(parts: Sequence[Reply]) -> Reply:
    """Return one reply with the bodies of all its parts."""
    first = parts[0]
    return Reply(first.status, first.content_type, first.headers, b"".join(part.body for part in parts))


def readable_ca(path: Path) -> Path:
    """Return ``path``, a file of certificates, once it is sure that it can be read.

    Raises:
        UsageError: it cannot.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the certificates in {path}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise UsageError(f"{path} holds no certificate in PEM", tip="marsmith certificate makes one for development")
    return path


def _quoted(segment: str) -> str:
    """Quote a path segment; the two that mean a folder on the way up or here are no exception.

    With tokens on, TorchServe takes any management request that contains the text ``/token`` for one to its token API,
    so that a model named ``tokenizer`` could not be managed; written as ``/%74okenizer`` it can.
    """
    if segment in {".", ".."}:
        return segment.replace(".", "%2E")
    text = quote(segment, safe="")
    return f"%{ord('t'):x}{text[1:]}" if text.startswith("token") else text


def _parts(response: requests.Response, late: float) -> Iterator[Reply]:
    headers = {name.lower(): value for name, value in response.headers.items()}
    kind, empty = headers.get("content-type", ""), True
    # Without a size the parts come as the server cut them; a whole body is read in larger pieces than single packets.
    size = None if headers.get("transfer-encoding") == "chunked" else CHUNK_BYTES
    for body in _until(response.iter_content(size), late):
        empty = False
        yield Reply(response.status_code, kind, headers, body)
    if empty:
        yield Reply(response.status_code, kind, headers, b"")


def _until(chunks: Iterator[bytes], late: float) -> Iterator[bytes]:
    """Pass the chunks on until the clock says ``late``: the timeout of requests is one for each read."""
    for chunk in chunks:
        if time.monotonic() > late:
            raise TimeoutError
        yield chunk


def _failure(url: str, error: Exception, deadline_s: float) -> ClientError:
    """Tell what kept a request from its reply."""
    import requests

    # While the body is read, requests gives a timeout as a ConnectionError.
    if isinstance(error, requests.Timeout | TimeoutError) or "Read timed out" in str(error):
        return missed(url, deadline_s)
    if isinstance(error, requests.exceptions.SSLError):
        return not_trusted(url, str(error))
    if isinstance(error, ValueError):
        return no_address(url)
    nobody = any(sign in str(error) for sign in ("NewConnectionError", "NameResolutionError"))
    return unreachable(url) if nobody else broken(url)


def missed(url: str, deadline_s: float) -> DeadlineError:
    """Return the error for a reply that did not come in time."""
    return DeadlineError(
        f"no answer from {url} within {deadline_s:.3g} s",
        address=url,
        tip="marsmith models shows whether its workers are ready",
    )


def no_address(url: str) -> ConnectionFailedError:
    """Return the error for a URL that is none."""
    return ConnectionFailedError(f"{url!r} is not the address of a server", tip="write it as http://127.0.0.1:8080")


def unreachable(url: str) -> ConnectionFailedError:
    """Return the error for an address where nothing listens."""
    return ConnectionFailedError(f"nothing listens at {url}", refused=True, tip="marsmith serve")


def broken(url: str) -> ConnectionFailedError:
    """Return the error for a connection that broke before the reply was complete."""
    return ConnectionFailedError(f"the connection broke to {url}", sent=True, tip="marsmith serve")


def not_trusted(url: str, reason: str) -> ConnectionFailedError:
    """Return the error for TLS that does not come about."""
    if "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason:
        return ConnectionFailedError(f"{url} does not speak TLS", tip="call it as http://, without a certificate")
    cause = re.search(r"certificate verify failed: ([^(\n]+)|CERTIFICATE_VERIFY_FAILED", reason)
    detail = f": {cause[1].strip()}" if cause and cause[1] else ""
    return ConnectionFailedError(
        f"the certificate of {url} cannot be trusted{detail}",
        tip="ca_file names the certificates to trust: that of the server itself where it is self-signed",
    )
