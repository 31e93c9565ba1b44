"""Which path is what: TorchServe's inference API, KServe's v1 and v2, and what the host adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

Action = Literal[
    "predict",
    "explain",
    "ping",
    "ready",
    "metrics",
    "models",
    "describe",
    "openapi",
    "page",
    "v1 ready",
    "v2 server",
    "v2 live",
    "v2 ready",
    "v2 model",
    "v2 model ready",
]


@dataclass(frozen=True)
class Route:
    """What a request asks for.

    Attributes:
        action: what is done.
        model: model name; empty: the only model.
        version: model version; None: the default one.
        needs_token: whether it needs a token if the host requires tokens.
    """

    action: Action
    model: str = ""
    version: str | None = None
    needs_token: bool = True


@dataclass(frozen=True)
class NoRoute:
    """A path or a method that there is not, with TorchServe's words."""

    status: Literal[404, 405]

    @property
    def kind(self) -> str:
        """TorchServe's name of the error."""
        return "ResourceNotFoundException" if self.status == 404 else "MethodNotAllowedException"

    @property
    def message(self) -> str:
        """TorchServe's text."""
        what = "Requested resource is not found" if self.status == 404 else "Requested method is not allowed"
        return f"{what}, please refer to API document."


_NO_PATH, _NO_METHOD = NoRoute(404), NoRoute(405)
_PLAIN: Mapping[tuple[str, ...], Route] = {
    (): Route("page", needs_token=False),
    ("ping",): Route("ping"),
    ("ready",): Route("ready", needs_token=False),
    ("metrics",): Route("metrics", needs_token=False),
    ("openapi.json",): Route("openapi", needs_token=False),
    ("models",): Route("models"),
    ("v2",): Route("v2 server"),
    ("v2", "health", "live"): Route("v2 live"),
    ("v2", "health", "ready"): Route("v2 ready"),
}
_READS = frozenset({"GET", "HEAD"})


def route(method: str, path: str) -> Route | NoRoute:
    """Return what a request asks for.

    Args:
        method: HTTP method.
        path: path of the URL, still quoted.
    """
    segments = tuple(unquote(segment) for segment in path.split("/") if segment)
    plain = _PLAIN.get(segments)
    if plain is not None:
        return plain if method in _READS else _NO_METHOD
    first, rest = segments[0], segments[1:]
    if first == "predictions" and 1 <= len(rest) <= 2:
        return Route("predict", rest[0], rest[1] if len(rest) == 2 else None)
    if first == "explanations" and 1 <= len(rest) <= 2:
        return Route("explain", rest[0], rest[1] if len(rest) == 2 else None)
    if segments == ("invocations",):
        return Route("predict") if method == "POST" else _NO_METHOD
    if first == "models" and 1 <= len(rest) <= 2:
        return Route("describe", rest[0], rest[1] if len(rest) == 2 else None) if method in _READS else _NO_METHOD
    if first in ("v1", "v2") and rest[:1] == ("models",):
        return _kserve(first, method, rest[1:])
    return _NO_PATH


def _kserve(protocol: str, method: str, rest: tuple[str, ...]) -> Route | NoRoute:
    """Return a route of KServe: a model, perhaps a version, and what is asked of it."""
    if protocol == "v1" and rest:
        # The verb belongs to the last name, as in m:predict.
        last, _, verb = rest[-1].partition(":")
        rest = (*rest[:-1], last, verb) if verb else (*rest[:-1], last)
    model, version, verbs = rest[:1], None, rest[1:]
    if verbs[:1] == ("versions",) and len(verbs) >= 2:
        version, verbs = verbs[1], verbs[2:]
    action = _VERBS.get((protocol, *verbs))
    if action is None or not any(model):
        return _NO_PATH
    expected = "POST" if action in ("predict", "explain") else "GET"
    return Route(action, model[0], version) if method == expected else _NO_METHOD


_VERBS: Mapping[tuple[str, ...], Action] = {
    ("v1",): "v1 ready",
    ("v1", "predict"): "predict",
    ("v1", "explain"): "explain",
    ("v2",): "v2 model",
    ("v2", "ready"): "v2 model ready",
    ("v2", "infer"): "predict",
}
