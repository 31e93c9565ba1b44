"""Who may send requests to a server: refuse a start that would let everybody do so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from marsmith.config.platform import VARIABLE, Platform
from marsmith.config.project_settings import FrontKind
from marsmith.config.server_config import addresses, uses_tokens
from marsmith.errors import MarsmithError
from marsmith.server.problems import PreflightProblem
from marsmith.server.selection import Selection

_TOKENS = "disable_token_authorization=false in config.properties"


def access_problems(
    config: Mapping[str, str], platform: Platform | None, front: FrontKind
) -> Iterator[PreflightProblem]:
    """Yield why a server with this config must not be started.

    Args:
        config: the effective server config.
        platform: the platform that runs the container; None: there is none.
        front: what is to be in front of TorchServe.
    """
    try:
        where = addresses(config)
    except MarsmithError:
        # It is reported with the addresses.
        return
    guarded = platform is not None and platform.guards
    if platform is not None and guarded and front == "none":
        yield PreflightProblem(
            f"{platform.name} sends requests without a token and to paths of its own, which only the front takes",
            "leave out --front none",
        )
    for each in (where.management, where.grpc_management):
        if guarded and platform is not None and not each.is_loopback:
            message = f"{each.key} is {each.host}:{each.port}: on {platform.name} only the container itself may manage"
            yield PreflightProblem(message, f"write {each.key.removesuffix('_port')} with 127.0.0.1")
    if uses_tokens(config):
        return
    if platform is not None and guarded:
        yield PreflightProblem(
            f"tokens are off, and {platform.name} needs none for predictions: with them, the management API has one",
            _TOKENS,
        )
        return
    for each in (where.inference, where.management):
        if not each.is_loopback:
            yield PreflightProblem(
                f"tokens are off, and {each.key} is open to other machines ({each.host}:{each.port})",
                f"{_TOKENS}, or 127.0.0.1 behind a proxy that asks who it is; {VARIABLE} names a platform that does so",
            )


def model_problems(platform: Platform | None, selection: Selection) -> Iterator[PreflightProblem]:
    """Yield the problem of a platform whose requests name no model, if there is not exactly one."""
    models = sorted({archive.version[0] for archive in selection.served})
    if platform is not None and platform.has_one_model and len(models) > 1:
        yield PreflightProblem(
            f"{platform.name} asks for one model without a name, and there are {len(models)}: {', '.join(models)}",
            "put the archive of one of them into the container",
        )
