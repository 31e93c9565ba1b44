"""Shell commands that send the same request, for users to copy."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from marsmith.client.hosts import is_this_machine
from marsmith.inputs import Input
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState


@dataclass(frozen=True)
class Caller:
    """The environment of the commands.

    Attributes:
        program: command line of ``marsmith`` with full paths, since another shell may not have it on its PATH.
        project: project of the server, since another shell may have another working directory.
    """

    program: tuple[str, ...]
    project: Project

    @classmethod
    def here(cls, project: Project) -> Caller:
        """Return the environment of this Python and its ``marsmith``."""
        script = Path(sys.executable).parent / "marsmith"
        # The first line of a script names its Python. It cannot if the path has a space.
        runs = script.is_file() and not any(character.isspace() for character in str(script))
        return cls((str(script),) if runs else (sys.executable, "-m", "marsmith"), project)

    def marsmith(self, *arguments: str) -> str:
        """Return a ``marsmith`` command line."""
        return f"{PROJECT_VARIABLE}={shlex.quote(str(self.project.root))} {shlex.join([*self.program, *arguments])}"


def curl_command(caller: Caller, state: RunState, model: str, version: str | None, given: Input) -> str | None:
    """Return the curl command that sends ``given``; None if the input came from a stream and is not in a file."""
    if given.path is None:
        return None
    path = f"/predictions/{model}" + (f"/{version}" if version else "")
    token = [f'-H "Authorization: Bearer $({caller.marsmith("token", "inference")})"'] if state.tokens else []
    trusted = ["--cacert", str(state.ca_file)] if state.ca_file else []
    # curl uses the proxy of the environment for servers on this machine as well.
    past_it = getproxies_environment() and is_this_machine(urlsplit(state.inference).hostname or "")
    direct = ["--noproxy", "*"] if past_it else []
    content = ["-H", f"Content-Type: {given.content_type}", "--data-binary", f"@{given.path}"]
    rest = [*direct, *trusted, *content, f"{state.inference}{path}"]
    return " ".join(["curl -sS", *token, shlex.join(rest)])


def grpc_command(caller: Caller, model: str, version: str | None, given: Input) -> str | None:
    """Return the command that sends ``given`` over gRPC; None if the input came from a stream and is not in a file."""
    if given.path is None:
        return None
    return caller.marsmith("predict", "--grpc", f"{model}:{version}" if version else model, str(given.path))
