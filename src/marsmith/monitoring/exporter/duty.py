"""The exporter as a duty of the supervisor: it listens, and answers /metrics, /ready and /live."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from marsmith import run_state
from marsmith.client.metrics import CounterSample, read_samples
from marsmith.config.server_config import ListenAddress
from marsmith.errors import MarsmithError
from marsmith.monitoring.exporter.front import FrontSource
from marsmith.monitoring.exporter.listener import Listener, Reply, Request, json_reply
from marsmith.monitoring.exporter.page import Page
from marsmith.monitoring.exporter.readiness import unhealthy, unready
from marsmith.monitoring.exporter.rollouts import RolloutSource
from marsmith.monitoring.exporter.samples import Source
from marsmith.monitoring.exporter.supervisor import SupervisorSource
from marsmith.monitoring.exporter.torchserve import TorchServeSource
from marsmith.project import Project
from marsmith.server.front.door import Front
from marsmith.server.outlook import Outlook
from marsmith.server.state import STOPPING


class Exporter:
    """The duty to tell others about the server.

    Attributes:
        name: name for messages.
    """

    name = "exporter"

    def __init__(
        self,
        project: Project,
        outlook: Outlook,
        address: ListenAddress,
        tell: Callable[[str], None],
        more: Sequence[Source] = (),
    ) -> None:
        """Begin to count; nothing listens yet.

        Args:
            project: project of the server.
            outlook: what the supervisor sees.
            address: where to listen; port 0: a free port.
            tell: called with each problem, as one sentence, from other threads.
            more: further sources of values.
        """
        self._project, self._outlook = project, outlook
        self._front = FrontSource(outlook, Front.of(project))
        torchserve = TorchServeSource(outlook, self._read_torchserve)
        slow: Sequence[Source] = (torchserve, self._front, RolloutSource(project), *more)
        self._page = Page(SupervisorSource(outlook, self._unready), slow, tell)
        self._listener = Listener(address, self._answer)

    def listen(self) -> None:
        """Begin to listen.

        Raises:
            ServerError: the address cannot be bound.
        """
        self._outlook.listener = self._listener.open()

    def tick(self) -> None:
        """Listen, if that was not possible before, and let the front count the models that there are.

        Raises:
            ServerError: the address cannot be bound.
            FrontError: the front does not take the models.
        """
        if not self._outlook.listener:
            self.listen()
        self._front.count_models()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _unready(self) -> str | None:
        stopping = (self._project.run / STOPPING).exists()
        left_out: Iterable[str] = ()
        with suppress(MarsmithError):
            left_out = [each.file for each in run_state.read(self._project).left_out if each.is_archive]
        return unready(self._outlook.look, left_out, stopping=stopping)

    def _read_torchserve(self) -> Iterable[CounterSample]:
        return read_samples(run_state.read(self._project))

    async def _answer(self, request: Request) -> Reply:
        if request.path == "/metrics":
            text, content_type = await self._page.text(request.accept)
            return Reply(200, text, content_type)
        if request.path == "/live":
            return json_reply(200, {"status": "live"})
        if request.path in {"/ready", "/ping"}:
            reason = self._unready() if request.path == "/ready" else unhealthy(self._outlook.look)
            return json_reply(503, {"reason": reason}) if reason else json_reply(200, {"status": "ready"})
        return json_reply(404, {"reason": "only /metrics, /ready, /ping and /live are here"})
