"""Weigh the answers that the front has logged: evidence against a canary, and counts of both versions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from marsmith.config.rollout_spec import WHOLE
from marsmith.deploy.front import Answer
from marsmith.deploy.traffic.state import RolloutState
from marsmith.predictions import Difference, Pair
from marsmith.statistics import Evidence, Finding, Ledger, SeenUsers, latency_limit_ms, value, weigh_rate

# Replies that are not those of the old version to the same request; a rate, and only if replies are compared.
DISAGREE = "disagree"
# Kinds of event with their weights: failures have three quarters of alpha, because users wait for the way back.
KINDS = {"failed": 9.0, "slow": 1.0, "refused": 1.0, DISAGREE: 1.0}
# At most one answer in a hundred may be above a 99th percentile. Twice that is tolerated in the stable version.
STABLE_SLOW_RATE = 0.02
# The stable version is judged by blocks of answers, or a good hour would hide a bad minute after it.
STABLE_BLOCK = 500
_STABLE_LIMIT = 1e4
# A request that came before that many changes of the share counts for nothing.
_MOST_SHARES = 8
# A copied request is compared a second or two after its answer; those of the last minute are known at 100 a second.
_MOST_REQUESTS = 6_000
_MOST_BODIES = 100_000
_WORDS = {"failed": "failed", "slow": "were slow", "refused": "were refused with a status of 400 to 499"}


@dataclass(frozen=True)
class Verdict:
    """What one answer says.

    Attributes:
        failed: it failed on the version that was asked first, and not because any version fails on it.
        refused: that version refused it as wrong.
        timed: its latency is that of this version.
    """

    failed: bool
    refused: bool
    timed: bool


def judge(answer: Answer) -> Verdict:
    """Judge one answer.

    A restart of the server makes the front repeat requests to both versions, so a repeated one counts as a failure of
    either: then the restart is no evidence.
    """
    repeated = answer.attempts > 1
    failed = answer.failed_on_canary_alone if answer.version else repeated or answer.reply_failed
    refused = answer.was_refused and not repeated
    return Verdict(failed, refused, timed=not (repeated or refused or answer.reply_failed))


class Weighing:
    """The evidence of one rollout, which grows with the answers."""

    def __init__(self, state: RolloutState) -> None:
        """Go on from a state."""
        self._version, self._stable, self._level = state.version, state.stable, state.level
        self._model = state.model
        self._ledger = Ledger.of_record(state.ledger) if state.ledger else Ledger(KINDS, state.canary.alpha)
        self._tallies = {state.version: state.canary_tally, "": state.stable_tally}
        self._slow_ms = state.slow_ms if state.slow_ms is not None else state.level.p99_ms
        self._shares = [(moment.at_s, moment.share) for moment in state.timeline if moment.what][-_MOST_SHARES:]
        self._before_limit: list[float] = []
        self._breach = Evidence()
        self._allowed = 1 - state.canary.min_agreement
        self._least = state.canary.min_requests
        # Answers of the canary whose latency was compared with a limit.
        self._timed = 0
        self._is_compared = state.canary.compare is not None
        self._users: OrderedDict[str, str] = OrderedDict()
        self._bodies = SeenUsers(most=_MOST_BODIES)

    def add(self, answers: Iterable[Answer]) -> int:
        """Weigh answers; return how many of them say something about the canary.

        Those of other models and versions are left out, and those that nobody waited for. A request that failed on both
        versions says nothing: in an outage a canary gets no further.
        """
        return sum(self._add(each) for each in answers if each.model == self._model and each.version in self._tallies)

    def add_compared(self, pairs: Iterable[tuple[Pair, Difference]]) -> None:
        """Weigh the replies of both versions to requests of the canary.

        Of equal bodies the first one counts, because their replies are no independent observations.
        """
        for pair, difference in pairs:
            if self._bodies.is_first(pair.new.input_sha256):
                user = self._users.get(pair.new.key, "")
                self._ledger.observe(DISAGREE, self._allowed, happened=not difference.agrees, user=user)

    @property
    def compared(self) -> int | None:
        """Number of weighed replies; None if none are to be compared."""
        found = next((finding for finding in self.findings() if finding.kind == DISAGREE), None)
        return found.hits + found.others if found else None

    def missing(self) -> str | None:
        """Return what there is too little of to call the canary good, with its count; None if there is enough."""
        if self._timed < self._least:
            return f"{self._timed} answers of the canary compared with a latency limit"
        compared = self.compared
        return f"{compared} compared replies" if compared is not None and compared < self._least else None

    def share_is(self, share: int, since_s: float) -> None:
        """Note the share of the canary from a moment on, in ten-thousandths and seconds since the epoch."""
        if not self._shares or self._shares[-1][1] != share:
            self._shares = [*self._shares, (since_s, share)][-_MOST_SHARES:]

    def into(self, state: RolloutState) -> RolloutState:
        """Return a state with the present evidence and counts."""
        return replace(
            state,
            canary_tally=self._tallies[self._version],
            stable_tally=self._tallies[""],
            slow_ms=self._slow_ms,
            ledger=self._ledger.record(),
        )

    def values(self) -> Mapping[str, float]:
        """Return the evidence by kind of event."""
        return {finding.kind: finding.evidence for finding in self.findings()}

    def findings(self) -> tuple[Finding, ...]:
        """Return the state of each kind of event that is looked for."""
        found = self._ledger.findings()
        return tuple(finding for finding in found if self._is_compared or finding.kind != DISAGREE)

    def trouble(self) -> str | None:
        """Return why the canary must not stay; None if there is no reason."""
        reached = next((finding for finding in self.findings() if finding.reached), None)
        return self._words(reached) if reached else self._stable_trouble()

    def _words(self, finding: Finding) -> str:
        return f"{self._counts(finding)}: evidence {finding.evidence:.3g}, limit {finding.limit:.3g}"

    def _counts(self, finding: Finding) -> str:
        if finding.kind == DISAGREE:
            compared = finding.hits + finding.others
            return f"{finding.hits} of {compared} replies of {self._version} are not those of {self._stable}"
        mine, other, what = self._tallies[self._version], self._tallies[""], _WORDS[finding.kind]
        return (
            f"{getattr(mine, finding.kind)} of {mine.answers} requests to {self._version} {what}, and"
            f" {getattr(other, finding.kind)} of {other.answers} to {self._stable}"
        )

    def _stable_trouble(self) -> str | None:
        if value(self._breach) < _STABLE_LIMIT:
            return None
        slow, all_ = self._breach.hits, self._breach.hits + self._breach.others
        return (
            f"{self._stable} itself is above its limit: {slow} of {all_} requests took over {self._level.p99_ms:g} ms"
        )

    def _add(self, answer: Answer) -> bool:
        """Weigh one answer; return whether it says something about the canary."""
        if not answer.was_answered:
            return False
        verdict, is_canary = judge(answer), bool(answer.version)
        slow = verdict.timed and self._slow_ms is not None and answer.duration_ms > self._slow_ms
        events = {"failed": verdict.failed, "slow": slow, "refused": verdict.refused}
        for kind, happened in events.items():
            if happened:
                self._ledger.event(kind, self._share_at(answer.at_s), is_canary=is_canary, user=answer.user)
        if is_canary and answer.user:
            self._users[answer.request_id] = answer.user
            while len(self._users) > _MOST_REQUESTS:
                self._users.popitem(last=False)
        self._timed += is_canary and verdict.timed and self._slow_ms is not None
        tally = self._tallies[answer.version]
        self._tallies[answer.version] = tally.with_answer(answer.duration_ms, timed=verdict.timed, **events)
        if not is_canary and verdict.timed:
            self._watch_stable(answer.duration_ms)
        return is_canary and (verdict.timed or verdict.failed or verdict.refused)

    def _share_at(self, at_s: float) -> float:
        """Return the share of the canary when a request came, 0 to 1; the log has it only for the canary."""
        return next((share for since_s, share in reversed(self._shares) if since_s <= at_s), 0) / WHOLE

    def _watch_stable(self, duration_ms: float) -> None:
        if self._level.p99_ms is not None:
            block = self._breach.hits + self._breach.others
            before = self._breach if block < STABLE_BLOCK else Evidence()
            self._breach = weigh_rate(before, STABLE_SLOW_RATE, duration_ms > self._level.p99_ms)
        elif self._slow_ms is None:
            self._before_limit.append(duration_ms)
            self._slow_ms = latency_limit_ms(self._before_limit)
