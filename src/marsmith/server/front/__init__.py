"""The front: Envoy before TorchServe. It keeps the public port, and divides the requests of a model between versions.

Envoy is configured by files in ``.marsmith/run/front``. A change is a new file under the old name, so that the files
are the state. ``bootstrap.json`` names the public addresses, ``cds.json`` and ``rds.json`` the clusters and the routes,
``ecds.json`` the tokens.
"""
