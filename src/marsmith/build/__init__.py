"""A spec, loose files or an old archive to a new archive."""
