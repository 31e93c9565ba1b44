"""Formats of a serialized file."""
