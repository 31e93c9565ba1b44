"""One rollout: its plan, steps, journal, recovery and watch."""
