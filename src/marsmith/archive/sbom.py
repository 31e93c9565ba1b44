"""The software bill of materials of an archive: its environment record and its files, in a form that scanners read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata

from marsmith.archive.cyclonedx import Library, render_bom
from marsmith.archive.environment import Environment

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
