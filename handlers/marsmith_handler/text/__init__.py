"""Text: limits, and conversion to tokens."""
