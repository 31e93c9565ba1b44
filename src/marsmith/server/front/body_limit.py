"""The largest request that the front takes, which is TorchServe's: larger ones are refused before TorchServe sees them.

TorchServe closes the connection of such a request. Here that looks like a TorchServe that dies, and Envoy would repeat
the request.
"""

from __future__ import annotations

from marsmith.server.front import scripts
from marsmith.server.front.clusters import Upstream
from marsmith.server.front.scripts import Json

# Its messages end at any time, and are answered meanwhile.
ENDLESS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions2"
# gRPC's CANCELLED, which TorchServe gives for such a message.
_CANCELLED = "1"
_GRPC = "application/grpc"
_GRPC_FRAME_BYTES = 5
_TYPE = "type.googleapis.com/"


def filters(upstream: Upstream) -> list[Json]:
    """Return the filters of a public listener that refuse larger bodies.

    A body that says its length is refused before it is read. Any other one is held until it is whole, as TorchServe
    does too, and the rest of it is not read when it is larger.
    """
    return [_hold(upstream.max_request_bytes + _GRPC_FRAME_BYTES), scripts.refuses_above(upstream.max_request_bytes)]


def replies() -> list[Json]:
    """Return the mappings of the local replies to such requests: TorchServe's are a status without a body."""
    too_large = {"op": "EQ", "value": {"default_value": 413, "runtime_key": "marsmith.too_large"}}
    status = {"status_code_filter": {"comparison": too_large}}
    grpc = {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": _GRPC}}}}
    code = {"header": {"key": "grpc-status", "value": _CANCELLED}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return [
        {
            "filter": {"and_filter": {"filters": [status, grpc]}},
            "headers_to_add": [code],
            "body": {"inline_string": "the body is larger than max_request_size"},
        },
        {"filter": status, "body": {"inline_string": ""}},
    ]


def _hold(most_bytes: int) -> Json:
    """Hold bodies of unknown length, at most so many bytes."""
    kind = "envoy.extensions.filters.common.matcher.action.v3.SkipFilter"
    says_length = _predicate("content-length", {"safe_regex": {"google_re2": {}, "regex": ".+"}})
    endless = _predicate(":path", {"exact": ENDLESS})
    matcher = {
        "predicate": {"or_matcher": {"predicate": [says_length, endless]}},
        "on_match": {"action": {"name": "skip", "typed_config": {"@type": f"{_TYPE}{kind}"}}},
    }
    buffer = {"@type": f"{_TYPE}envoy.extensions.filters.http.buffer.v3.Buffer", "max_request_bytes": most_bytes}
    return {
        "name": "marsmith.hold",
        "typed_config": {
            "@type": f"{_TYPE}envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": {"name": "envoy.filters.http.buffer", "typed_config": buffer},
            "xds_matcher": {"matcher_list": {"matchers": [matcher]}},
        },
    }


def _predicate(header: str, value: Json) -> Json:
    where = {"@type": f"{_TYPE}envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": header}
    return {"single_predicate": {"input": {"name": "header", "typed_config": where}, "value_match": value}}
