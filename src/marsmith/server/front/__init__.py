"""The front: Envoy before TorchServe, which divides the requests of a model between its versions."""
