"""Tensors: file formats, and the inputs of a module by name."""
