"""``python -m marsmith`` is the ``marsmith`` command."""

from marsmith.cli import run_command

if __name__ == "__main__":
    run_command()
