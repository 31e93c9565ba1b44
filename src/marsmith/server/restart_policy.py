"""When a server that died is started again: soon at first, then later and later, and not for ever."""

from __future__ import annotations

from dataclasses import dataclass

from marsmith.errors import UsageError

# One that has run for this long has not failed rapidly: the count begins anew.
STABLE_S = 60.0
DEFAULT_LIMIT = 5

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0


@dataclass(frozen=True)
class RestartPolicy:
    """How often a server is started again.

    Attributes:
        limit: failures in a row, each less than a minute after the one before; None: any number, 0: never again.
    """

    limit: int | None = DEFAULT_LIMIT

    def delay_s(self, failures: int) -> float | None:
        """Return how long to wait after so many failures in a row, in seconds; None: give up."""
        if self.limit is not None and failures > self.limit:
            return None
        return float(min(_FIRST_DELAY_S * 2 ** min(failures - 1, 10), _LONGEST_DELAY_S))


def parse_restart(text: str) -> RestartPolicy:
    """Parse ``N``, ``always`` or ``no``.

    Raises:
        UsageError: it is none of them.
    """
    if text == "always":
        return RestartPolicy(None)
    if text == "no":
        return RestartPolicy(0)
    if text.isascii() and text.isdigit() and len(text) < 7:
        return RestartPolicy(int(text))
    raise UsageError(f"--restart {text!r} is neither a number nor 'always' nor 'no'")


def render_restart(policy: RestartPolicy) -> str:
    """Return the text that ``parse_restart`` reads back."""
    return "always" if policy.limit is None else str(policy.limit)
