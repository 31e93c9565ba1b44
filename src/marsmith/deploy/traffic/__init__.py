"""Traffic between versions: give a new version its requests share by share, and go back by evidence."""
