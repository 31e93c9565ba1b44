"""A rollout: plan, steps, journal, recovery and watch."""
