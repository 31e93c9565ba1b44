"""Entry point of ``python -m marsmith``."""

from marsmith.cli import run_command

if __name__ == "__main__":
    run_command()
