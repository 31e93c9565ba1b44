"""One request to one of TorchServe's REST APIs, and the reply to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from marsmith.errors import ClientError, ConnectionFailedError, DeadlineError, FormatError

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

    def __init__(self) -> None:
        import requests
        from requests.adapters import HTTPAdapter

        self._session = requests.Session()
        # The environment's proxies are not meant for a server on this machine, and a .netrc would replace the token.
        self._session.trust_env = False
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=KEPT_CONNECTIONS))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def send(self, request: Request, *, token: str | None, deadline_s: float) -> Reply:
        """Send ``request`` and return the reply, whatever its status.

        Raises:
            ConnectionFailedError: nothing listens there, or the connection broke.
            DeadlineError: the reply was not complete after ``deadline_s`` seconds.
        """
        import requests

        late = time.monotonic() + deadline_s
        try:
            with self._start(request, token, deadline_s) as response:
                return _read(response, late)
        except (requests.RequestException, TimeoutError) as error:
            raise _failure(request.url, error, deadline_s) from None

    def _start(self, request: Request, token: str | None, timeout_s: float) -> requests.Response:
        import requests

        headers = {**request.headers, **({"Authorization": f"Bearer {token}"} if token else {})}
        prepared = self._session.prepare_request(
            requests.Request(request.method, request.url, data=request.body, headers=headers)
        )
        # Set afterwards: requests would take the percent-encoding of _quoted back.
        prepared.url = request.address
        return self._session.send(prepared, stream=True, timeout=timeout_s, allow_redirects=False)


def _quoted(segment: str) -> str:
    """Quote a path segment; the two that mean a folder on the way up or here are no exception.

    With tokens on, TorchServe takes any management request that contains the text ``/token`` for one to its token API,
    so that a model named ``tokenizer`` could not be managed; written as ``/%74okenizer`` it can.
    """
    if segment in {".", ".."}:
        return segment.replace(".", "%2E")
    text = quote(segment, safe="")
    return f"%{ord('t'):x}{text[1:]}" if text.startswith("token") else text


def _read(response: requests.Response, late: float) -> Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    body = b"".join(_until(response.iter_content(CHUNK_BYTES), late))
    return Reply(response.status_code, headers.get("content-type", ""), headers, body)


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
        return DeadlineError(
            f"no answer from {url} within {deadline_s:g} s", tip="marsmith models shows whether its workers are ready"
        )
    if isinstance(error, ValueError):
        return ConnectionFailedError(f"{url!r} is not the address of a server", tip="write it as http://127.0.0.1:8080")
    nobody = any(sign in str(error) for sign in ("NewConnectionError", "NameResolutionError"))
    return ConnectionFailedError(
        f"{'nothing listens at' if nobody else 'the connection broke to'} {url}", tip="marsmith serve"
    )
