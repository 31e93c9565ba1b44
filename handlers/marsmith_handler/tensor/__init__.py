"""Tensors: their formats on the wire, and the inputs of a module by name."""
