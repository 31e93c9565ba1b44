"""The worker: a process with the handler of one archive. It imports neither TorchServe nor torch by itself."""
