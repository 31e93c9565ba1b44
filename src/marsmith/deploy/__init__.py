"""Versions and traffic: bring a version into service, or leave everything as it was."""
