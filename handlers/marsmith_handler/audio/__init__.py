"""Sound: WAV files, and windows of speech joined to spans."""
