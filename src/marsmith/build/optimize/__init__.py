"""Rebuild an archive of the stock tool in the fastest form that gives the same answers."""
