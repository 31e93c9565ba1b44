"""Where a model comes from: its recipe, and its weights."""
