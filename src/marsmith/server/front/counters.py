"""What Envoy counts for each model: replies by the class of their status, and the time of requests, over REST.

Over gRPC the model is in the body, which the front does not read without a rollout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from marsmith.names import check_model_name
from marsmith.server.front.scripts import Json

# Name of the virtual host, in Envoy's metrics.
HOST = "all"
# Bounds of the buckets of latencies, in milliseconds: Envoy's own have none between 100 and 250.
BUCKETS_MS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000, 10_000, 120_000)
REPLIES = "envoy_vhost_vcluster_upstream_rq_xx"
TIME_MS = "envoy_vhost_vcluster_upstream_rq_time"
MODEL_LABEL, CLASS_LABEL = "envoy_virtual_cluster", "envoy_response_code_class"
_FILTER = rf"^vhost\.{HOST}\.vcluster\..*\.upstream_rq_(.xx|time)$"
# Path of the admin interface that gives them in Prometheus' format.
STATISTICS = f"/stats/prometheus?usedonly&filter={quote(_FILTER, safe='')}"
# Envoy refuses regular expressions of more than 100 steps otherwise; a model's name alone may have that many.
RUNTIME: Json = {"re2.max_program_size.error_level": 10_000}
_VERSION = "(?:/versions/[^/?]*)?"


def virtual_cluster(model: str, predict: str = "") -> Json:
    """Return Envoy's virtual cluster of a model: all requests for predictions of it.

    Args:
        model: name of the model.
        predict: a further path of these requests; empty: there is none.
    """
    name = re.escape(check_model_name(model))
    torchserve = f"(?:predictions|explanations)/{name}(?:/[^/?]*)?"
    kserve = f"v1/models/{name}{_VERSION}:(?:predict|explain)|v2/models/{name}{_VERSION}/(?:infer|explain)"
    further = f"|{re.escape(predict)}" if predict else ""
    path = rf"(?:/(?:{torchserve}|{kserve}){further})(?:\?.*)?"
    # Envoy's metrics end a name at its first dot.
    return {
        "name": model.replace(".", "~"),
        "headers": [{"name": ":path", "string_match": {"safe_regex": {"regex": path}}}],
    }


def model_of(labels: Mapping[str, str]) -> str:
    """Return the model that a sample with these labels is about."""
    return labels.get(MODEL_LABEL, "").replace("~", ".")


def histogram_buckets() -> Json:
    """Return the part of the bootstrap that sets the buckets of latencies."""
    match = {"suffix": ".upstream_rq_time"}
    return {"histogram_bucket_settings": [{"match": match, "buckets": list(BUCKETS_MS)}]}
