"""What lets Grafana find boards and data by itself, and a compose file for all three programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from marsmith.monitoring.prometheus import RETENTION, RETENTION_SIZE, SCRAPE_INTERVAL_S
from marsmith.monitoring.targets import Target

DATA_SOURCES = f"""\
# Grafana reads it at its start: /etc/grafana/provisioning/datasources.
apiVersion: 1
datasources:
  - name: Prometheus
    uid: marsmith-prometheus
    type: prometheus
    access: proxy
    url: http://127.0.0.1:9090
    isDefault: true
    jsonData:
      # How often Prometheus reads: the boards take four of them together.
      timeInterval: {SCRAPE_INTERVAL_S}s
"""

BOARD_FOLDER = """\
# Grafana reads it at its start: /etc/grafana/provisioning/dashboards.
apiVersion: 1
providers:
  - name: marsmith
    folder: marsmith
    type: file
    allowUiUpdates: false
    options:
      path: /etc/grafana/dashboards
"""

_COMPOSE = """\
# docker compose up, or podman-compose up.
# An example, to be edited: `marsmith monitor --write` keeps it once it is there.
# They share the network of the host, because the server listens on the loopback, and listen there themselves.
services:
  prometheus:
    image: docker.io/prom/prometheus:v3.5.0
    network_mode: host
    command:
      - --config.file=/etc/prometheus/prometheus.yml
      - --storage.tsdb.path=/prometheus
      - --storage.tsdb.retention.time={retention}
      - --storage.tsdb.retention.size={size}
      - --web.listen-address=127.0.0.1:9090
    volumes:
      - ./prometheus.yml:/etc/prometheus/prometheus.yml:ro
      - ./rules:/etc/prometheus/rules:ro{certificates}
      - prometheus:/prometheus
    restart: unless-stopped

  alertmanager:
    image: docker.io/prom/alertmanager:v0.28.1
    network_mode: host
    command:
      - --config.file=/etc/alertmanager/alertmanager.yml
      - --storage.path=/alertmanager
      - --web.listen-address=127.0.0.1:9093
      - --cluster.listen-address=
    volumes:
      - ./alertmanager.yml:/etc/alertmanager/alertmanager.yml:ro
      - alertmanager:/alertmanager
    restart: unless-stopped

  grafana:
    image: docker.io/grafana/grafana:12.1.0
    network_mode: host
    environment:
      GF_SERVER_HTTP_ADDR: 127.0.0.1
      GF_SERVER_HTTP_PORT: "3000"
      # Set it before the first start.
      GF_SECURITY_ADMIN_PASSWORD: ${{GRAFANA_PASSWORD:?the password of the user admin}}
      GF_ANALYTICS_REPORTING_ENABLED: "false"
    volumes:
      - ./grafana/provisioning:/etc/grafana/provisioning:ro
      - ./grafana/dashboards:/etc/grafana/dashboards:ro
      - grafana:/var/lib/grafana
    restart: unless-stopped

volumes:
  prometheus: {{}}
  alertmanager: {{}}
  grafana: {{}}
"""


def render_compose(targets: Sequence[Target]) -> str:
    """Render the compose file; certificates are mounted at their own paths."""
    files = sorted({str(target.ca_file) for target in targets if target.ca_file})
    mounts = "".join(f"\n      - {_quoted(f'{path}:{path}:ro')}" for path in files)
    return _COMPOSE.format(retention=RETENTION, size=RETENTION_SIZE, certificates=mounts)


def _quoted(text: str) -> str:
    """Return a text as YAML has it between quotes; compose takes ``$`` for a variable if it is not doubled."""
    return json.dumps(text.replace("$", "$$"), ensure_ascii=False)
