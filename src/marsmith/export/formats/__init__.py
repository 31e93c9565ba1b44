"""The formats of a serialized file."""
