"""What marsmith remembers of a project: what was served, the journal of deploys, the bytes of each version."""
