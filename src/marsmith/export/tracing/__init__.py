"""Detection of behaviour that tracing would lose."""
