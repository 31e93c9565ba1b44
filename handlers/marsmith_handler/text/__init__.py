"""Text: how much of it is taken, and how it becomes tokens."""
