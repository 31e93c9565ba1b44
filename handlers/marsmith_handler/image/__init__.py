"""Pictures: decoding of files to the tensors that a model takes."""
