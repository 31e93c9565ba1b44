"""Sound: decoding WAV files, and joining windows of speech to spans."""
