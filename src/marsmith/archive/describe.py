"""Description of an archive for people, from its own content without verification; for that see ``verify``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from marsmith.archive import environment as environment_format
from marsmith.archive.environment import parse_environment
from marsmith.archive.examples import ValidatedExample
from marsmith.archive.read import Archive
from marsmith.archive.reference import read_reference
from marsmith.archive.verify import read_examples
from marsmith.errors import ArchiveError, ConfigError, FormatError, VerificationError
from marsmith.json_reader import read_json
from marsmith.strict_yaml import load_model_config

EXPORT = "MAR-INF/export.json"


def describe(archive: Archive) -> dict[str, Any]:
    """Return everything that an archive contains about itself, as plain values.

    A missing part is None. A part that cannot be read is ``{"problem": <why>}``.

    Raises:
        ArchiveError: the archive's file is damaged.
    """
    manifest = archive.manifest
    return {
        "name": manifest.model_name,
        "version": manifest.model_version,
        "path": str(archive.path),
        "kind": archive.kind,
        "size": archive.size,
        "digest": archive.digest(),
        "format_version": manifest.format_version,
        "archiver_version": manifest.archiver_version,
        "created_on": manifest.created_on,
        "runtime": manifest.runtime,
        "handler": manifest.handler,
        "serialized_file": manifest.serialized_file,
        "model_file": manifest.model_file,
        "members": [asdict(info) for info in archive.members.values()],
        "export": _export(archive),
        "model_config": _model_config(archive),
        "environment": _environment(archive),
        "examples": _examples(archive),
        "reference": _reference(archive),
        "signature": _signature(archive),
    }


def top_reply(example: ValidatedExample) -> str:
    """Return the most informative part of a validated reply: the largest value with its label, a digest, or all."""
    if example.reply_sha256 is not None:
        return f"SHA-256 {example.reply_sha256}"
    reply = example.reply
    if isinstance(reply, Mapping) and reply and all(_is_number(value) for value in reply.values()):
        label = max(reply, key=lambda key: reply[key])
        value = reply[label]
        return f"{label} {value:.4g}" if isinstance(value, float) else f"{label} {value}"
    return json.dumps(reply, ensure_ascii=False)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problem(error: Exception) -> dict[str, Any]:
    return {"problem": str(error)}


def _export(archive: Archive) -> Mapping[str, Any] | None:
    text = archive.text(EXPORT)
    if text is None:
        return None
    try:
        data = read_json(text)
    except (ValueError, RecursionError) as error:
        return _problem(error)
    return data if isinstance(data, dict) else {"problem": "not an object"}


def _model_config(archive: Archive) -> Mapping[str, Any] | None:
    name = archive.manifest.config_file
    text = archive.text(name) if name else None
    if name is None or text is None:
        return None
    try:
        return load_model_config(text, name, ConfigError)
    except ConfigError as error:
        return _problem(error)


def _environment(archive: Archive) -> dict[str, Any] | None:
    text = archive.text(environment_format.FILE_NAME)
    if text is None:
        return None
    try:
        environment = parse_environment(text)
    except FormatError as error:
        return _problem(error)
    return {"python": environment.python, **environment.distributions}


def _examples(archive: Archive) -> list[dict[str, Any]] | dict[str, Any] | None:
    try:
        examples = read_examples(archive)
    except (ArchiveError, FormatError) as error:
        return _problem(error)
    if examples is None:
        return None
    return [{**example.record(), "top": top_reply(example)} for example in examples]


def _reference(archive: Archive) -> dict[str, Any] | None:
    try:
        reference = read_reference(archive)
    except (ArchiveError, FormatError) as error:
        return _problem(error)
    if reference is None:
        return None
    return {"inputs": reference.inputs, "sha256": reference.sha256, "statistics": sorted(reference.statistics)}


def _signature(archive: Archive) -> dict[str, Any] | None:
    """Return what the signature beside the archive claims; its verification needs a key."""
    from marsmith.archive.signature import read_signature, signature_path

    beside = signature_path(archive.path)
    if archive.kind == "folder" or not beside.is_file():
        return None
    try:
        signature = read_signature(beside)
    except VerificationError as error:
        return _problem(error)
    return {
        "file": beside.name,
        "key": signature.key_fingerprint,
        "signed_name": signature.signed_name,
        "signed_digest": signature.signed_digest,
    }
