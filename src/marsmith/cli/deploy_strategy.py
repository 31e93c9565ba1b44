"""Options of ``marsmith deploy`` that say how a version gets its requests: at once, as a canary, or as a shadow."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from marsmith.errors import UsageError

if TYPE_CHECKING:
    from marsmith.deploy.traffic.handover import Given

# Options of a canary: their names in the command line and in the strategy.
_OF_A_CANARY = {
    "steps": "steps",
    "interval": "interval_s",
    "min_requests": "min_requests",
    "max_wait": "max_wait_s",
    "sticky": "sticky",
    "compare": "compare",
}
# Options of a shadow: as above.
_OF_A_SHADOW = {"sample": "sample", "time": "time_s", "min_agreement": "min_agreement"}


def add_strategy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how a version gets its requests."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--canary", action="store_true", help="give it its requests share by share, back on evidence")
    how.add_argument("--shadow", action="store_true", help="give it copies of requests, and compare its replies")
    how.add_argument("--at-once", action="store_true", help="give it all requests at once, whatever the spec says")
    _add_canary_arguments(parser)
    _add_shadow_arguments(parser)


def _add_canary_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", metavar="PERCENT,...", type=_steps, help="shares of the canary, rising (1,5,25,50)")
    parser.add_argument("--interval", metavar="TIME", type=_duration, help="minimum time at each share: 30s, 2m (2m)")
    parser.add_argument(
        "--min-requests", metavar="N", type=positive, help="minimum number of answers of the canary at each share (50)"
    )
    parser.add_argument(
        "--max-wait", metavar="TIME", type=_duration, help="time at one share until it is inconclusive (1h)"
    )
    parser.add_argument(
        "--sticky", metavar="header:NAME|cookie:NAME", help="what a user is recognised by (each request by itself)"
    )

    parser.add_argument(
        "--compare",
        metavar="PERCENT",
        type=_sample,
        help="which part of the canary's requests the old version gets too, so that other replies are evidence (none)",
    )


def _add_shadow_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample", metavar="PERCENT", type=_sample, help="which part of the requests the shadow gets (10%%)"
    )
    parser.add_argument("--for", dest="time", metavar="TIME", type=_duration, help="for how long it gets them (30m)")
    parser.add_argument(
        "--min-agreement",
        metavar="SHARE",
        type=float,
        help="agreement that --then and --compare want, above 0 and below 1 (0.99)",
    )
    parser.add_argument("--then", choices=["canary"], help="what follows the shadow if the replies agree")


def strategy_of(args: argparse.Namespace) -> Given | None:
    """Return the strategy that the options name; None: as the spec says.

    Raises:
        UsageError: an option goes with another strategy.
    """
    canary, shadow = _given(args, _OF_A_CANARY), _given(args, _OF_A_SHADOW)
    if canary and not (args.canary or args.then):
        raise UsageError(f"{_flag(args, _OF_A_CANARY)} goes with --canary, or with --shadow --then canary")
    if args.compare and not args.shadow and "min_agreement" in shadow:
        canary["min_agreement"] = shadow.pop("min_agreement")
    if (shadow or args.then) and not args.shadow:
        flag = _flag(args, _OF_A_SHADOW) or "--then"
        also = ", or with --canary --compare" if flag == "--min-agreement" else ""
        raise UsageError(f"{flag} goes with --shadow{also}")
    if args.shadow:
        from marsmith.deploy.traffic.shadow import GivenShadow

        return GivenShadow(shadow, canary, args.then)
    if args.canary:
        return canary
    return "switch" if args.at_once else None


def _given(args: argparse.Namespace, options: Mapping[str, str]) -> dict[str, Any]:
    return {name: getattr(args, key) for key, name in options.items() if getattr(args, key) is not None}


def _flag(args: argparse.Namespace, options: Mapping[str, str]) -> str | None:
    """Return the first of some options that is given."""
    first = next((key for key in options if getattr(args, key) is not None), None)
    return first and ("--for" if first == "time" else f"--{first.replace('_', '-')}")


def _sample(text: str) -> float:
    from marsmith.config.rollout_spec import parse_sample

    return _parsed(text, parse_sample)


def _steps(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of percentages, as in 1,5,25,50") from None


def _duration(text: str) -> float:
    from marsmith.config.rollout_spec import parse_duration

    return _parsed(text, parse_duration)


def _parsed(text: str, parse: Callable[[str], float]) -> float:
    try:
        return parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message}; {error.tip}") from None


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return number
