"""``MAR-INF/sbom.cdx.json``: software bill of materials of an archive, CycloneDX 1.6 as JSON.

It contains the environment record and the files of the archive. The model is the subject; its files and the required
distributions are the components. There is no time, and the serial number is derived from the content, so equal content
gives equal bytes.
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
    """A distribution that the model requires.

    Attributes:
        name: normalised name (PEP 503).
        version: exact version.
        expression: SPDX licence expression; None if the metadata has none.
        licenses: names of licences in free text, if there is no expression.
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
    """Render the document.

    Args:
        model: name and version of the model.
        python: version of Python.
        libraries: required distributions.
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
        # Indirect requirements depend on the installation, and are not part of this document.
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


# A longer License field contains the text of a licence, not its name.
_MAX_LICENSE_NAME = 64


def installed_library(name: str, version: str) -> Library:
    """Describe a distribution; its licences are known if this exact version is installed here."""
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
    """Render the CycloneDX document of an archive; equal arguments give equal bytes.

    It contains exactly the distributions of ``environment.txt``, so that both change together.

    Args:
        model_name: model name of the manifest.
        model_version: model version of the manifest.
        environment: environment record of the archive.
        files: SHA-256 (hex) by member name.
        describe: returns a distribution with its licences by name and version.
    """
    libraries = [describe(name, version) for name, version in environment.distributions.items()]
    return render_bom((model_name, model_version), environment.python, libraries, files)


def _license_names(fields: metadata.PackageMetadata) -> tuple[str, ...]:
    """Return the licences in metadata without an SPDX expression: the License field, else the classifiers."""
    name = _field(fields, "License")
    if name and name.upper() != "UNKNOWN" and "\n" not in name and len(name) <= _MAX_LICENSE_NAME:
        return (name,)
    classifiers = [text for text in fields.get_all("Classifier") or [] if text.startswith("License ::")]
    return tuple(sorted({text.rpartition(" :: ")[2] for text in classifiers}))


def _field(fields: metadata.PackageMetadata, name: str) -> str:
    return str(fields[name]).strip() if name in fields else ""
