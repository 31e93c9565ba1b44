"""What a person asks about an archive, gathered from inside it; nothing here is proved, see ``verify`` for that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from marsmith.archive.read import Archive
from marsmith.archive.verify import read_examples
from marsmith.errors import ArchiveError, ConfigError, FormatError, VerificationError
from marsmith.formats import environment as environment_format
from marsmith.formats.environment import parse_environment
from marsmith.formats.examples import ValidatedExample
from marsmith.formats.strict_yaml import load_mapping

EXPORT = "MAR-INF/export.json"
# A few lines of YAML can stand for billions of values, and the parser takes seconds for deeply nested brackets.
_MAX_VALUES = 10_000
_MAX_CONFIG_CHARACTERS = 64 << 10
_MAX_BRACKETS = 500


def describe(archive: Archive) -> dict[str, Any]:
    """Return everything that an archive says of itself, as plain values.

    A part that the archive does not have is None; a part that cannot be read is ``{"problem": <why>}``.

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
        "signature": _signature(archive),
    }


def top_reply(example: ValidatedExample) -> str:
    """Return the most telling part of a validated reply: the largest value with its label, a digest, or all of it."""
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
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _problem(error)
    return data if isinstance(data, dict) else {"problem": "not an object"}


def _model_config(archive: Archive) -> Mapping[str, Any] | None:
    name = archive.manifest.config_file
    text = archive.text(name) if name else None
    if name is None or text is None:
        return None
    if len(text) > _MAX_CONFIG_CHARACTERS or text.count("[") + text.count("{") > _MAX_BRACKETS:
        return {"problem": "too large or too deeply nested to be shown"}
    try:
        plain = _plain(load_mapping(text, name, ConfigError), [_MAX_VALUES])
    except (FormatError, ArchiveError) as error:
        return _problem(error)
    except (ValueError, RecursionError) as error:
        # The parser lets these through, as for a date with a thirteenth month.
        return _problem(error)
    return plain if isinstance(plain, dict) else None


def _plain(value: Any, budget: list[int]) -> Any:
    """Turn parsed YAML into what JSON can hold, as long as the budget of values lasts."""
    budget[0] -= 1
    if budget[0] < 0:
        raise ArchiveError(f"more than {_MAX_VALUES:,} values")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, budget) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(item, budget) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else str(value)


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


def _signature(archive: Archive) -> dict[str, Any] | None:
    """Say what the signature beside the archive claims; only a key can prove it."""
    from marsmith.signature import read_signature, signature_path

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
