"""The page /metrics: collected from all sources when somebody asks, and at most once at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from marsmith.errors import MarsmithError
from marsmith.monitoring.exporter.samples import Sample, Source, exposition

# Whoever asks waits no longer for new values; after that the last ones are given.
WAIT_S = 2.0


class Page:
    """Values of all sources; a source that fails or hangs gives its last ones."""

    def __init__(self, live: Source, slow: Sequence[Source], tell: Callable[[str], None]) -> None:
        """Prepare the page.

        Args:
            live: a source that is asked for each page, because it makes no request itself.
            slow: sources that are asked beside, in a thread.
            tell: called once with each new problem.
        """
        self._live, self._slow, self._tell = live, slow, tell
        self._last: dict[int, tuple[Sample, ...]] = {}
        self._told: set[str] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._collecting: asyncio.Future[None] | None = None

    async def text(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its content type."""
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.get_running_loop().run_in_executor(self._pool, self.collect)
        await asyncio.wait({self._collecting}, timeout=WAIT_S)
        return exposition([*self._live.collect(), *self._known()], accept)

    def collect(self) -> None:
        """Ask every slow source."""
        for index, source in enumerate(self._slow):
            try:
                self._last[index] = tuple(source.collect())
            except MarsmithError as error:
                self._tell_once(error.message)
            except Exception as error:  # the other sources must be asked, whatever this one raises
                self._tell_once(f"metrics: {error!r}")

    def _known(self) -> Iterable[Sample]:
        return (sample for index in range(len(self._slow)) for sample in self._last.get(index, ()))

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)
