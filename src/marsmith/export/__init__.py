"""Weights to a serialized file that gives the same answers."""
