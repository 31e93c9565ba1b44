"""Sign an archive with a private key. The signature is a file beside it, and the archive is not changed.

    openssl ecparam -name prime256v1 -genkey -noout -out private.pem
    openssl ec -in private.pem -pubout -out public.pem
    marsmith sign model_store/efficientnet_lite0-1.0.mar --key private.pem
    marsmith verify model_store/efficientnet_lite0-1.0.mar --key public.pem
    marsmith sign model_store/efficientnet_lite0-1.0.mar --key leaf.key.pem --certificate leaf.pem --chain issuer.pem
    marsmith verify model_store/efficientnet_lite0-1.0.mar --authority root.pem

The signature follows the OpenSSF model-signing format; `model_signing verify` accepts it too. No network is used. With
a certificate it is verified with the authority's certificate alone.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note, print_fields, print_json, printable

if TYPE_CHECKING:
    from marsmith.archive.signature import Signature


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith sign``."""
    parser.add_argument("archive", metavar="ARCHIVE", type=Path, help="a .mar or .tar.gz")
    parser.add_argument("--key", metavar="PRIVATE", type=Path, required=True, help="private key: PEM, ECDSA")
    parser.add_argument("--certificate", metavar="FILE", type=Path, help="certificate of the key, PEM")
    parser.add_argument(
        "--chain",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="certificate between it and the authority, PEM; may be given several times",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the signature goes; default: ARCHIVE.sig")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Sign, and print what was signed."""
    signature = _sign(args)
    fields = {
        "signature": str(signature.path),
        "digest": signature.signed_digest,
        "key": signature.key_fingerprint,
    }
    if args.json:
        print_json(fields)
    else:
        print_fields(fields)


def _sign(args: argparse.Namespace) -> Signature:
    from marsmith.archive.admit import Policy, admit
    from marsmith.archive.certified import sign_with_certificate
    from marsmith.errors import UsageError

    archive, key, output = args.archive, args.key, args.output
    if args.chain and not args.certificate:
        raise UsageError("--chain needs --certificate", tip="marsmith sign ARCHIVE --key KEY --certificate FILE")
    # What is signed must hold; whether it is signed already, and by whom, does not matter.
    for warning in admit(archive, Policy()).warnings:
        note(printable(warning))
    if args.certificate:
        return sign_with_certificate(archive, key, args.certificate, args.chain, output=output)
    return _sign_with_key(archive, key, output)


def _sign_with_key(archive: Path, key: Path, output: Path | None) -> Signature:
    from marsmith.archive.signature import KeyPasswordError, sign

    try:
        return sign(archive, key, output=output)
    except KeyPasswordError:
        if not sys.stdin.isatty():
            raise
    return sign(archive, key, output=output, password=getpass.getpass(f"password of {key}: ").encode())
