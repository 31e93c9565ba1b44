"""TorchServe's three APIs over REST and gRPC."""
