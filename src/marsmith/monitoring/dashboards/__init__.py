"""Grafana's dashboards: service, rollout and model."""

from __future__ import annotations

from marsmith.monitoring.dashboards.boards import Board, Panel, Query, Row
from marsmith.monitoring.dashboards.grafana import render_board
from marsmith.monitoring.dashboards.model import MODEL
from marsmith.monitoring.dashboards.rollout import ROLLOUT
from marsmith.monitoring.dashboards.service import SERVICE

__all__ = ["BOARDS", "Board", "Panel", "Query", "Row", "render_board"]

BOARDS = (SERVICE, ROLLOUT, MODEL)
