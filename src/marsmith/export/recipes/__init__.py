"""Origins of a model: its recipe and its weights."""
