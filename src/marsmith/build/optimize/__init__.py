"""An archive of the stock tool, rebuilt in the fastest form that gives the same answers."""
