"""Print a token for curl; an expired one is renewed first.

    curl -H "Authorization: Bearer $(marsmith token inference)" -T photo.jpg http://127.0.0.1:8080/predictions/efficientnet_lite0

Only the token is printed. The inference token is for predictions and ping, the management token for everything under
/models, and the api token for /token, which renews the others. With --rotate the old token becomes invalid: marsmith's
clients read the key file again and continue; other clients need the new token.
"""

from __future__ import annotations

import argparse

from marsmith.cli.output import note


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith token``."""
    from marsmith.client.key_file import ROLES

    parser.add_argument("role", choices=ROLES, help="API of the token")
    parser.add_argument("--rotate", action="store_true", help="make it invalid, and print a new one")


def run(args: argparse.Namespace) -> None:
    """Print the token."""
    from marsmith import run_state
    from marsmith.client import tokens
    from marsmith.client.key_file import read_key_file
    from marsmith.project import find_project

    state = run_state.read(find_project())
    value = tokens.token(state, args.role, rotate=args.rotate)
    for warning in read_key_file(state.key_file).warnings:
        note(f"warning: {warning}")
    print(value)
