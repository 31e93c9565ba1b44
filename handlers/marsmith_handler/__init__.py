"""What the handlers share; an archive carries the modules of it that its handler imports.

A worker's Python need not have marsmith: nothing in here imports it.
"""
