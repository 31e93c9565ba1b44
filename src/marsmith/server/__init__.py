"""TorchServe as a process: preflight, start, supervision, state, diagnosis."""
