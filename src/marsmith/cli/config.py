"""Show the effective configuration: each value, where it comes from, and what it overrides.

    marsmith config                     # the server, then every version in the store
    marsmith config efficientnet_lite0  # the versions of one model
    marsmith config --json

An archive that `marsmith serve` would leave out is listed with the reason, instead of its configuration. If a server
runs, its values are compared with the files; the exit code is 1 if they differ.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, print_json, print_table, printable
from marsmith.errors import UsageError
from marsmith.names import did_you_mean
from marsmith.project import Project, find_project

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from marsmith.config.effective import Setting, VersionSettings
    from marsmith.run_state import LeftOut
    from marsmith.server.differences import ParameterDifference
    from marsmith.server.selection import Selection


_SECRETS = frozenset({"keystore_pass"})


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="show the versions of this model only")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the configuration, and return 1 if a running server differs from it."""
    from marsmith.config.effective import server_settings
    from marsmith.config.server_config import read_server_config
    from marsmith.server.front.settings import front_settings

    project = find_project()
    front = front_settings(project)
    server = server_settings(project, read_server_config(project), os.environ)
    selection = _selection(project, server)
    versions = _versions(server, selection, args.model)
    differences = _differences(project, server, versions, args.model)
    if args.json:
        print_json(_data(front, server, versions, selection.left_out, differences, args.model))
    else:
        _print(front, server, versions, selection.left_out, differences, args.model)
    return int(bool(differences))


def _selection(project: Project, server: Mapping[str, Setting]) -> Selection:
    from pathlib import Path

    from marsmith.archive.store import load_items
    from marsmith.config.project_settings import admission_policy
    from marsmith.server.selection import Selection, select

    store = Path(server["model_store"].value)
    if not store.is_dir():
        return Selection()
    return select(load_items(store, server["load_models"].value), policy=admission_policy(project))


def _versions(server: Mapping[str, Setting], selection: Selection, model: str | None) -> list[VersionSettings]:
    from marsmith.config.effective import version_settings
    from marsmith.machine import gpus, usable_cores

    stored = selection.served
    names = {archive.manifest.model_name for archive in stored}
    if model is not None and model not in names:
        raise UsageError(
            f"no archive of {model!r} in {server['model_store'].value}{did_you_mean(model, names)}",
            tip=f"marsmith archive {model}",
        )
    chosen = [archive for archive in stored if model in {None, archive.manifest.model_name}]
    counted = len(gpus())
    return [version_settings(archive, server, cores=usable_cores(), gpus=counted) for archive in chosen]


def _differences(
    project: Project, server: Mapping[str, Setting], versions: Iterable[VersionSettings], model: str | None
) -> list[ParameterDifference] | None:
    """Compare with the running server; None if there is none."""
    from marsmith.config.properties import ENCODING, as_mapping, parse_properties
    from marsmith.config.server_config import FILE_NAME
    from marsmith.errors import NotRunningError
    from marsmith.server.differences import server_differences, version_differences
    from marsmith.server.front.settings import front_differences
    from marsmith.server.status import server_status

    try:
        status = server_status(project)
    except NotRunningError:
        return None
    live = [version for version in status.versions if model in {None, version.model_name}]
    found = version_differences(versions, live)
    if model is not None:
        return found
    text = (project.run / FILE_NAME).read_text(encoding=ENCODING)
    differing = server_differences(server, as_mapping(parse_properties(text)))
    return [*front_differences(project), *differing, *found]


def _data(
    front: Iterable[Setting],
    server: Mapping[str, Setting],
    versions: Iterable[VersionSettings],
    left_out: Iterable[LeftOut],
    differences: list[ParameterDifference] | None,
    model: str | None,
) -> dict[str, object]:
    shown: dict[str, object] = {}
    if not model:
        shown["front"] = {setting.key: _setting(setting) for setting in front}
        shown["server"] = {key: _setting(setting) for key, setting in server.items()}
    return {
        **shown,
        "versions": [
            {
                "model": version.model_name,
                "version": version.model_version,
                "settings": {setting.key: _setting(setting) for setting in version.settings},
            }
            for version in versions
        ],
        "left_out": [asdict(each) for each in left_out],
        "running": differences is not None,
        "differences": [asdict(difference) for difference in differences or ()],
    }


def _setting(setting: Setting) -> dict[str, object]:
    overrode = [] if setting.key in _SECRETS else [asdict(source) for source in setting.overrode]
    return {"value": _shown(setting), "origin": setting.origin, "overrode": overrode}


def _print(
    front: Iterable[Setting],
    server: Mapping[str, Setting],
    versions: Iterable[VersionSettings],
    left_out: Iterable[LeftOut],
    differences: list[ParameterDifference] | None,
    model: str | None,
) -> None:
    if not model:
        _print_settings("FRONT", front)
        print()
        _print_settings("SERVER", server.values())
    for version in versions:
        print()
        _print_settings(f"{version.model_name}:{version.model_version}", version.settings)
    print()
    for each in left_out:
        print(printable(str(each)))
    if differences is None:
        print("no server runs, so nothing is compared")
    elif not differences:
        print("the running server agrees")
    else:
        rows = [(found.what, found.key, found.expected, found.live) for found in differences]
        print_table(("DIFFERS", "KEY", "FILES SAY", "SERVER SAYS"), rows)


def _print_settings(title: str, settings: Iterable[Setting]) -> None:
    """Print those that have a value; the value comes last, because it may be long."""
    rows = []
    for setting in settings:
        if not setting.value and not setting.overrode:
            continue
        secret = setting.key in _SECRETS
        over = ", ".join(
            source.origin if secret else f"{source.value} of {source.origin}" for source in setting.overrode
        )
        rows.append((setting.key, setting.origin, _shown(setting) + (f"  (over {over})" if over else "")))
    print_table((title, "FROM", "VALUE"), rows)


def _shown(setting: Setting) -> str:
    return "(hidden)" if setting.key in _SECRETS else setting.value
