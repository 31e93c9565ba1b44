"""The page at ``/`` to try the models, and their description for tools: OpenAPI."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from marsmith import __version__
from marsmith.host.version import HostedVersion

_ANY_BODY = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("application/octet-stream", "image/jpeg")
} | {"application/json": {"schema": {}}, "text/plain": {"schema": {"type": "string"}}}
_ERROR = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "type": {"type": "string"}, "message": {"type": "string"}},
}


@cache
def content() -> bytes:
    """Return the page."""
    return files("marsmith.host").joinpath("page.html").read_bytes()


@cache
def headers() -> Mapping[str, str]:
    """Return the headers of the page: it runs its own script only, and calls its own server only."""
    script = content().partition(b"<script>")[2].partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    rules = f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob:; connect-src 'self'"
    return {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": f"default-src 'none'; {rules}; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
    }


def openapi(versions: Sequence[HostedVersion], *, with_tokens: bool) -> dict[str, Any]:
    """Return the description of the API in OpenAPI 3.1, with the paths of each version."""
    names = sorted({version.id.name for version in versions})
    paths: dict[str, Any] = {
        f"/predictions/{name}": {"post": _prediction(f"{name}, its default version")} for name in names
    }
    for version in versions:
        name, number = version.id
        paths[f"/predictions/{name}/{number}"] = {"post": _prediction(f"{name} {number}")}
    for name in names:
        paths[f"/v1/models/{name}:predict"] = {"post": _kserve(f"{name}, KServe v1", "instances", "predictions")}
        paths[f"/v2/models/{name}/infer"] = {"post": _kserve(f"{name}, KServe v2", "inputs", "outputs")}
        paths[f"/models/{name}"] = {"get": _read(f"{name}: workers and queue")}
    paths |= {
        "/models": {"get": _read("the models")},
        "/ping": {"get": _read("whether every version has a worker")},
        "/ready": {"get": _read("the same, without a token") | {"security": []}},
        "/metrics": {"get": _read("metrics for Prometheus", "text/plain") | {"security": []}},
    }
    bearer = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "marsmith host", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": bearer if with_tokens else {}, "schemas": {"Error": _ERROR}},
        "security": [{"bearer": []}] if with_tokens else [],
    }


def _prediction(summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _ANY_BODY},
        "responses": {"200": {"description": "the reply of the handler"}, "default": _failure()},
    }


def _kserve(summary: str, asked: str, answered: str) -> dict[str, Any]:
    def listing(key: str) -> dict[str, Any]:
        return {"type": "object", "required": [key], "properties": {key: {"type": "array", "items": {}}}}

    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": listing(asked)}}},
        "responses": {
            "200": {"description": answered, "content": {"application/json": {"schema": listing(answered)}}},
            "default": _failure(),
        },
    }


def _read(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {kind: {}}}, "default": _failure()},
    }


def _failure() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": "an error", "content": {"application/json": {"schema": schema}}}
