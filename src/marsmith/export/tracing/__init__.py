"""What tracing a module would lose, found before it is lost."""
