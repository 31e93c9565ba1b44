"""Make a self-signed certificate for TLS in development, and show the lines of the server config for it.

    marsmith certificate --write
    marsmith certificate --host models.example.com --days 7

The key and the certificate are written to .marsmith/tls, which git ignores. They are valid for localhost, 127.0.0.1,
::1 and every --host. Without --write, config.properties is not changed, and the lines to change are printed. --write
uses an existing pair if it is valid; only --force replaces it. curl trusts the server with `--cacert
.marsmith/tls/certificate.pem`; marsmith's own commands do so automatically.
"""

from __future__ import annotations

import argparse

from marsmith.cli.output import note


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith certificate``."""
    parser.add_argument(
        "--host",
        metavar="NAME_OR_IP",
        action="append",
        default=[],
        help="a further name or address of the server; may be given more than once",
    )
    parser.add_argument("--days", type=int, default=30, help="how long it is valid (%(default)s)")
    parser.add_argument("--write", action="store_true", help="change config.properties, comments kept")
    parser.add_argument("--force", action="store_true", help="replace an existing pair")


def run(args: argparse.Namespace) -> None:
    """Make a pair or use the existing one, and change the server config or print the changes."""
    from marsmith.config import certificate
    from marsmith.config.properties import as_mapping, render_properties
    from marsmith.config.server_config import read_server_config
    from marsmith.project import find_project

    project = find_project()
    config = as_mapping(read_server_config(project))
    folder = certificate.folder_of(project)
    key, cert = folder / certificate.KEY_NAME, folder / certificate.CERTIFICATE_NAME
    pair = certificate.pair_there(folder, args.host) if args.write and not args.force else None
    if pair is None:
        pair = certificate.make_pair(args.host, args.days)
        certificate.write_pair(folder, pair, force=args.force)
    else:
        note("using the existing pair:")
    note(f"{key}\n{cert}: valid for {', '.join(pair.hosts)} until {pair.expires:%Y-%m-%d %H:%M} UTC")
    changes = certificate.config_changes(project, config, key, cert)
    if args.write:
        certificate.write_changes(project, changes)
        note(f"changed {project.server_config}; marsmith stop && marsmith serve")
    else:
        note("in config.properties (--write does it):")
    print(render_properties(changes), end="")
