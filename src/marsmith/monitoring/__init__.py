"""Monitoring of a running server: what it gives to Prometheus, and whether it is ready."""
