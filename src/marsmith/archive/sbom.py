"""The software bill of materials of an archive: its environment record and its files, in a form that scanners read.

``MAR-INF/sbom.cdx.json``: a software bill of materials, CycloneDX 1.6 as JSON.

It has no time and no random serial number: the serial number is derived from the content, so equal content gives equal
bytes. The model is the subject; its files and the distributions it needs are the components.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from urllib.parse import quote

from marsmith.archive.environment import Environment

FILE_NAME = "MAR-INF/sbom.cdx.json"


@dataclass(frozen=True)
class Library:
    """A distribution that the model needs.

    Attributes:
        name: normalised name (PEP 503).
        version: exact version.
        expression: SPDX licence expression; None where the metadata has none.
        licenses: names of licences in free text, where there is no expression.
    """

    name: str
    version: str
    expression: str | None = None
    licenses: tuple[str, ...] = ()

    @property
    def purl(self) -> str:
        """The package URL: ``pkg:pypi/torch@2.8.0%2Bcpu``."""
        return f"pkg:pypi/{quote(self.name)}@{quote(self.version, safe='')}"


def render_bom(model: tuple[str, str], python: str, libraries: Iterable[Library], files: Mapping[str, str]) -> str:
    """Print the document.

    Args:
        model: name and version of the model.
        python: version of Python.
        libraries: the distributions that it needs.
        files: SHA-256 (hex) by member name.
    """
    name, version = model
    subject = f"model:{name}@{version}"
    runtime = {
        "type": "platform",
        "bom-ref": f"pkg:generic/python@{quote(python, safe='')}",
        "name": "python",
        "version": python,
        "purl": f"pkg:generic/python@{quote(python, safe='')}",
    }
    needed = [runtime, *map(_library, sorted(libraries, key=lambda library: library.name))]
    needed_refs = [component["bom-ref"] for component in needed]
    content = {
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "marsmith"}]},
            "component": {"type": "machine-learning-model", "bom-ref": subject, "name": name, "version": version},
        },
        "components": [*needed, *(_file(*item) for item in sorted(files.items()))],
        "dependencies": _dependencies(subject, needed_refs),
        # What the distributions require in turn is settled where they are installed, and not part of this document.
        "compositions": [{"aggregate": "incomplete", "dependencies": needed_refs}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return json.dumps({**head, **content}, indent=2) + "\n"


def _library(library: Library) -> dict[str, Any]:
    licenses: list[dict[str, Any]] = [{"license": {"name": name}} for name in library.licenses]
    if library.expression:
        licenses = [{"expression": library.expression}]
    return {
        "type": "library",
        "bom-ref": library.purl,
        "name": library.name,
        "version": library.version,
        **({"licenses": licenses} if licenses else {}),
        "purl": library.purl,
    }


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }


def _dependencies(subject: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    return [{"ref": subject, "dependsOn": list(needed)}, *({"ref": ref} for ref in needed)]


# Beyond this a License field holds a licence's text, not its name.
_MAX_LICENSE_NAME = 64


def installed_library(name: str, version: str) -> Library:
    """Describe a distribution; its licences are known where exactly this version is installed here."""
    try:
        fields = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return Library(name, version)
    if fields["Version"] != version:
        return Library(name, version)
    expression = _field(fields, "License-Expression")
    if expression:
        return Library(name, version, expression=expression)
    return Library(name, version, licenses=_license_names(fields))


def render_sbom(
    model_name: str,
    model_version: str,
    environment: Environment,
    files: Mapping[str, str],
    *,
    describe: Callable[[str, str], Library] = installed_library,
) -> str:
    """Print the CycloneDX document of an archive; equal arguments give equal bytes.

    It names what ``environment.txt`` names and no more, so that both change together or not at all.

    Args:
        model_name: the manifest's.
        model_version: the manifest's.
        environment: the archive's record.
        files: SHA-256 (hex) by member name.
        describe: gives a distribution's licences by its name and version.
    """
    libraries = [describe(name, version) for name, version in environment.distributions.items()]
    return render_bom((model_name, model_version), environment.python, libraries, files)


def _license_names(fields: metadata.PackageMetadata) -> tuple[str, ...]:
    """Return the licences of metadata older than SPDX expressions: the License field, else the classifiers."""
    name = _field(fields, "License")
    if name and name.upper() != "UNKNOWN" and "\n" not in name and len(name) <= _MAX_LICENSE_NAME:
        return (name,)
    classifiers = [text for text in fields.get_all("Classifier") or [] if text.startswith("License ::")]
    return tuple(sorted({text.rpartition(" :: ")[2] for text in classifiers}))


def _field(fields: metadata.PackageMetadata, name: str) -> str:
    return str(fields[name]).strip() if name in fields else ""
