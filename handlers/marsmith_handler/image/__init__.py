"""Pictures: which files are read, and how their pixels become what a model takes."""
