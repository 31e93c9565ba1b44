"""Saved state of a project: served versions, the journal of deploys, and the digest of each version."""
