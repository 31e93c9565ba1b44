"""Verify that an archive is complete and safe, and on request that it still answers as it did when it was built.

    marsmith verify model_store/efficientnet_lite0-1.0.mar
    marsmith verify model_store/efficientnet_lite0-1.0.mar --replay --key public.pem

The checks cover its structure, manifest, digests and examples, the recorded environment compared with this Python
(differences are warnings), whether config/marsmith.yaml admits it, and on request the signature beside it and the
replies of its handler. --replay runs code from the archive, but only if all other checks pass. The exit code is 1 if a
check fails; the lines name the members.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, print_json, print_table, printable, say

if TYPE_CHECKING:
    from marsmith.archive import Archive
    from marsmith.archive.admit import Policy
    from marsmith.archive.verify import Check, Verification


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith verify``."""
    parser.add_argument("archive", metavar="ARCHIVE", type=Path, help="a .mar, a .tar.gz or a folder")
    parser.add_argument("--replay", action="store_true", help="send the examples to the handler, compare the replies")
    parser.add_argument("--key", metavar="PUBLIC", type=Path, help="require a signature by this key, in ARCHIVE.sig")
    parser.add_argument(
        "--authority",
        metavar="CERTIFICATE",
        type=Path,
        action="append",
        default=[],
        help="require a signature with a certificate of this authority, PEM; may be given several times",
    )
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, print every check, and return 1 if one failed."""
    from marsmith.archive import Archive
    from marsmith.archive.verify import Check, Verification, verify
    from marsmith.config.project_settings import policy_here
    from marsmith.errors import ArchiveError, FormatError

    policy = policy_here()
    try:
        archive = Archive.open(args.archive)
        replay = _replay() if args.replay else None
        verification = verify(
            archive, replay=replay, key=args.key, also=[*_admission(archive, policy), *_certified(args)]
        )
    except (ArchiveError, FormatError) as error:
        # An archive that cannot be opened is reported as a failed check.
        verification = Verification(args.archive, (Check("structure", "failed", error.message),))
    _print(verification, as_json=args.json)
    return 0 if verification.ok else 1


def _replay() -> Callable[[Archive], list[Check]]:
    from marsmith.runtime.replay import replay_checks

    return replay_checks


def _admission(archive: Archive, policy: Policy) -> list[Check]:
    """Check whether the project of the working folder would admit the archive."""
    from marsmith.archive.admit import policy_problems
    from marsmith.archive.verify import Check

    good = f"archives: {policy.archives}, signatures: {policy.signatures}"
    problems = [Check("admission", "failed", problem) for problem in policy_problems(archive, policy)]
    return problems or [Check("admission", "ok", good)]


def _certified(args: argparse.Namespace) -> list[Check]:
    """Say whether one of the authorities vouches for who signed the archive; nothing if none is named."""
    if not args.authority:
        return []
    from marsmith.archive.certified import verify_certified
    from marsmith.archive.verify import Check
    from marsmith.errors import ArchiveError, VerificationError

    try:
        subject, digest = verify_certified(args.archive, args.authority)
    except (VerificationError, ArchiveError) as error:
        return [Check("certificate", "failed", error.message)]
    return [Check("certificate", "ok", f"signed by {subject}, SHA-256 {digest}")]


def _print(verification: Verification, *, as_json: bool) -> None:
    if as_json:
        checks = [asdict(check) for check in verification.checks]
        print_json({"archive": str(verification.archive), "ok": verification.ok, "checks": checks})
        return
    rows = [(check.outcome, check.name, printable(check.detail)) for check in verification.checks]
    print_table(("outcome", "check", "detail"), rows)
    count = len(verification.failures)
    say(f"{verification.archive}: " + (f"refused, {count} failed" if count else "verified"))
