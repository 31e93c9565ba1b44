"""Pictures of the boards for the documentation."""
