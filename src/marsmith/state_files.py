"""State files: JSON with a format version, so that other releases of marsmith can read or refuse them.

A dataclass defines the content of a file, and pydantic validates it. A missing key of a later release has the default
of its field, and an unknown key is ignored. Any other change requires a new version of the format, which earlier
releases refuse.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from marsmith.errors import FormatError
from marsmith.json_reader import read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

State = TypeVar("State", bound="DataclassInstance")


class NewerFormatError(FormatError):
    """A later release of marsmith wrote the file."""


def render(state: DataclassInstance, version: int, *, indent: int | None = 2) -> str:
    """Render a state; ``parse`` restores it. Without an indent large ones are written fast."""
    return json.dumps({"format": version, **asdict(state)}, indent=indent, default=str) + "\n"


def parse(kind: type[State], text: str, source: str, *, version: int, unversioned: int | None = None) -> State:
    """Parse the text of a state.

    Args:
        kind: the dataclass.
        text: text of the file.
        source: the file, or another name for the origin of the text.
        version: version of the format in this release.
        unversioned: version of files without one, from early releases; None: there are none.

    Raises:
        NewerFormatError: the file has a later version.
        FormatError: the file is damaged, or has a version that is not supported any more.
    """
    try:
        data = read_json(text)
    except ValueError as error:
        raise FormatError(source, [f"not JSON: {error}"]) from None
    _check_version(data, source, version, unversioned)
    return validate(kind, data, source)


def validate(kind: type[State], data: Any, source: str) -> State:
    """Build a dataclass, with nested ones, from parsed JSON.

    Raises:
        FormatError: a value is missing or has another type.
    """
    from pydantic import ValidationError

    adapter = _adapter(kind)
    try:
        validated: State = adapter.validate_python(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise FormatError(source, list(_problems(found, adapter.json_schema()))) from None
    return validated


@cache
def _adapter(kind: type[State]) -> TypeAdapter[State]:
    # Imported late, because many commands read no state.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _check_version(data: Any, source: str, version: int, unversioned: int | None) -> None:
    found = data.get("format", unversioned) if isinstance(data, dict) else None
    if type(found) is not int:
        raise FormatError(source, ["has no format"])
    if found > version:
        raise NewerFormatError(
            source,
            [f"is of format {found}, this marsmith knows {version}"],
            tip="a later marsmith wrote it: use that one (pip install --upgrade marsmith)",
        )
    if found != version:
        raise FormatError(source, [f"is of format {found}, this marsmith knows {version}"])


def _problems(errors: Iterable[ErrorDetails], schema: dict[str, Any]) -> Iterable[str]:
    for error in errors:
        *above, last = error["loc"] or ("",)
        place = ".".join(map(str, error["loc"]))
        if error["type"] == "missing":
            yield f"{'.'.join(map(str, above))} has no {last}".strip()
        elif error["type"] == "dataclass_type":
            kind = schema.get("$defs", {}).get(error["ctx"]["class_name"], schema)
            yield f"{place} is {error['input']!r:.40}, which has no {', '.join(kind['required'])}".strip()
        else:
            yield f"{place} is {error['input']!r:.40}: {error['msg']}"
