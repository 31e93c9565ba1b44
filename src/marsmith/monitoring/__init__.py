"""Monitoring of a running server: what Prometheus reads from it."""
