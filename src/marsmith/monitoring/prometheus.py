"""Configuration of Prometheus and Alertmanager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from marsmith import strict_yaml
from marsmith.monitoring.targets import Target

SCRAPE_INTERVAL_S = 15
_EVALUATION_INTERVAL_S = 30
# Long enough for the longest window of the rules, 3 days, and for a look at the last deploys.
RETENTION = "15d"
RETENTION_SIZE = "2GB"


def render_prometheus(
    targets: Sequence[Target],
    alertmanager: str,
    rule_files: Sequence[str],
    *,
    scrape_interval_s: int = SCRAPE_INTERVAL_S,
    evaluation_interval_s: int = _EVALUATION_INTERVAL_S,
) -> str:
    """Render ``prometheus.yml``.

    Args:
        targets: what is read.
        alertmanager: ``host:port`` of Alertmanager.
        rule_files: rule files, relative to the file or absolute.
        scrape_interval_s: time between two readings, in seconds.
        evaluation_interval_s: time between two evaluations of the rules, in seconds.
    """
    config = {
        "global": {
            "scrape_interval": f"{scrape_interval_s}s",
            "scrape_timeout": f"{min(scrape_interval_s, 10)}s",
            "evaluation_interval": f"{evaluation_interval_s}s",
        },
        "rule_files": list(rule_files),
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [_job(target) for target in targets],
    }
    return strict_yaml.dump(config)


def _job(target: Target) -> dict[str, Any]:
    parts = urlsplit(target.url)
    tls = {"tls_config": {"ca_file": str(target.ca_file)}} if target.ca_file else {}
    return {
        "job_name": target.job,
        "metrics_path": "/metrics",
        "scheme": parts.scheme,
        **tls,
        "static_configs": [{"targets": [parts.netloc]}],
    }


# An example that is valid as it is: alerts are routed and seen at Alertmanager's own page, and nobody is told.
ALERTMANAGER = """\
# An example, to be edited: `marsmith monitor --write` keeps it once it is there.
route:
  receiver: tickets
  group_by: [alertname, model]
  group_wait: 30s
  group_interval: 5m
  repeat_interval: 12h
  routes:
    # Users notice it, and somebody must act now.
    - matchers: ['severity="page"']
      receiver: pager
      group_wait: 10s
      repeat_interval: 1h
    # Good to know.
    - matchers: ['severity="info"']
      receiver: nobody

inhibit_rules:
  # A ticket adds nothing to a page about the same.
  - source_matchers: ['severity="page"']
    target_matchers: ['severity=~"ticket|info"']
    equal: [alertname, model]
  # If a server does not answer, its parts do not either.
  - source_matchers: ['alertname="MarsmithServerDown"']
    target_matchers: ['alertname=~"MarsmithNoWorkerReady|MarsmithQueueOverHalf"']
    equal: [instance]

receivers:
  # For example slack_configs, pagerduty_configs, email_configs or webhook_configs:
  # https://prometheus.io/docs/alerting/latest/configuration/#receiver
  - name: pager
  - name: tickets
  - name: nobody
"""
