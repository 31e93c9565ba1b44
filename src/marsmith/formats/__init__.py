"""Texts and what they mean: each module models one file format, as text to frozen objects and back.

No disk, no network.
"""
