"""The front of one project: prepared before TorchServe starts, opened when it is ready, held while it is away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from marsmith import files
from marsmith.client.key_file import read_key_file
from marsmith.errors import AuthorizationError, FormatError, FrontError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server.front import admin, process
from marsmith.server.front.bootstrap import CLUSTERS_FILE, FILE_NAME, METRICS, ROUTES_FILE, Listening, bootstrap
from marsmith.server.front.entrance import Entrance
from marsmith.server.front.files import lead_to, write
from marsmith.server.front.ports import metrics_address
from marsmith.server.front.process import FrontProcess, Starter
from marsmith.server.front.resources import write_resources
from marsmith.server.front.tokens import Tokens, parse_tokens, render_tokens, token_filter
from marsmith.server.front.upstream import FILE_NAME as UPSTREAM_FILE
from marsmith.server.front.upstream import TOKEN_FILTER, TOKENS_FILE, current_upstream, upstream_of

_TOKENS = "tokens.json"
_LOCK = "lock"
_ACCEPTED_S = 10.0
_CLUSTERS_VERSION = "cluster_manager.cds.version_text"
_TOKENS_VERSION = f"extension_config_discovery.upstream_http_filter.{TOKEN_FILTER}.version_text"


@dataclass(frozen=True)
class Front:
    """The front of a project.

    Attributes:
        folder: folder of its files.
    """

    folder: Path

    @classmethod
    def of(cls, project: Project) -> Front:
        """Return the front of a project, whether it runs or not."""
        return cls(project.run / "front")

    @property
    def is_prepared(self) -> bool:
        """Whether the server runs with the front, or starts with it."""
        return (self.folder / FILE_NAME).exists()

    @property
    def metrics(self) -> str:
        """URL of its own metrics; empty if it is not prepared."""
        try:
            listeners = json.loads((self.folder / FILE_NAME).read_text())["static_resources"]["listeners"]
            found = next(each for each in listeners if each["name"] == METRICS)["address"]["socket_address"]
            return f"http://{found['address']}:{found['port_value']}/metrics"
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            return ""

    @property
    def process(self) -> FrontProcess | None:
        """Its running process; None if there is none."""
        return process.running(self.folder)

    def prepare(
        self,
        config: Mapping[str, str],
        metrics_port: int = 0,
        entrance: Entrance | None = None,
        *,
        without_tokens: bool = False,
    ) -> None:
        """Write Envoy's files for a server config, and let Envoy check them.

        Args:
            config: the effective server config.
            metrics_port: port of the front's metrics; 0: a free one.
            entrance: further paths; None: there are none.
            without_tokens: whether clients need no token, because others decide who may send requests.

        Raises:
            FrontError: Envoy is not installed, or refuses the configuration.
        """
        process.find_envoy()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        upstream = upstream_of(self.folder, config, None)
        content = bootstrap(self.folder, Listening.of(config, metrics_address(metrics_port)), upstream, entrance)
        files.write_atomically(self.folder / FILE_NAME, json.dumps(content, indent=1) + "\n", mode=0o600)
        self._write_tokens(replace(self._tokens(), is_open=without_tokens))
        try:
            write(self.folder, upstream, entrance)
        except FormatError:
            # Damaged routes must not prevent the start: every request goes to the default version.
            (self.folder / ROUTES_FILE).unlink()
            write(self.folder, upstream, entrance)

    def open(self, config: Mapping[str, str], state: RunState, starter: Starter) -> None:
        """Let requests through to a TorchServe that is ready, and start Envoy if it does not run.

        Args:
            config: the effective server config.
            state: the server, with its private addresses.
            starter: how to start Envoy.

        Raises:
            FrontError: Envoy does not start, or does not accept the change.
        """
        upstream = upstream_of(self.folder, config, state.backend)
        with self._locked():
            self._know_new_tokens(state)
            runs = self.process is not None
            if runs:
                # The token first: TorchServe would refuse a request with the token of the one before it.
                self._until_accepted(_TOKENS_VERSION, TOKENS_FILE)
            lead_to(self.folder, upstream)
            if not runs:
                process.start(self.folder, starter)
            self._until_accepted(_CLUSTERS_VERSION, CLUSTERS_FILE)

    def hold(self, config: Mapping[str, str]) -> None:
        """Let requests wait: TorchServe has ended, and its port may belong to another process by now."""
        upstream = upstream_of(self.folder, config, None)
        with self._locked():
            self._notice_new_token()
            lead_to(self.folder, upstream)

    def ensure_running(self, starter: Starter) -> bool:
        """Start Envoy again if it has ended, and return whether it had.

        Raises:
            FrontError: it does not start.
        """
        with self._locked():
            if self.process is not None or not self.is_prepared:
                return False
            process.start(self.folder, starter)
            return True

    def close(self, timeout_s: float) -> None:
        """End Envoy, and remove the files of a running one: what is left is for the next start."""
        if not self.folder.exists():
            return
        with self._locked():
            if self.is_prepared:
                self._notice_new_token()
            for name in (FILE_NAME, UPSTREAM_FILE):
                (self.folder / name).unlink(missing_ok=True)
            process.end(self.folder, timeout_s)

    def drain(self) -> None:
        """Refuse new connections; requests in flight are answered."""
        if self.process is not None:
            with suppress(FrontError):
                admin.ask(self.folder, "/drain_listeners", method="POST")

    @property
    def key_file(self) -> Path:
        """TorchServe's ``key_file.json``."""
        return self.folder.parent / "key_file.json"

    def notice_new_token(self) -> None:
        """Take over a token that was requested since, which makes earlier ones invalid."""
        with self._locked():
            self._notice_new_token()

    def _notice_new_token(self) -> None:
        known = self._tokens()
        with suppress(AuthorizationError, FormatError, FrontError):
            # While TorchServe restarts, its new token makes no other one invalid.
            if known.current is None or current_upstream(self.folder).rest_port == 0:
                return
            changed = known.after_renewal(read_key_file(self.key_file).inference, datetime.now(UTC))
            if changed.current != known.current:
                self._write_tokens(changed)

    def forget_tokens(self) -> None:
        """Remove the accepted tokens: the server is stopped on purpose."""
        for name in (_TOKENS, TOKENS_FILE):
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude other changes of the process and its tokens, of this process and of others."""
        with files.lock(self.folder / _LOCK):
            yield

    def _until_accepted(self, statistic: str, name: str) -> None:
        admin.wait_for_file(self.folder, statistic, self.folder / name, deadline_s=_ACCEPTED_S)

    def _know_new_tokens(self, state: RunState) -> None:
        known = self._tokens()
        if state.tokens:
            known = known.after_restart(read_key_file(self.key_file).inference, datetime.now(UTC))
        self._write_tokens(known)

    def _tokens(self) -> Tokens:
        try:
            return parse_tokens((self.folder / _TOKENS).read_text(encoding="ascii"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Without them, only the tokens of this TorchServe are good.
            return Tokens()

    def _write_tokens(self, tokens: Tokens) -> None:
        files.write_atomically(self.folder / _TOKENS, render_tokens(tokens), mode=0o600)
        write_resources(self.folder / TOKENS_FILE, [token_filter(tokens)])
