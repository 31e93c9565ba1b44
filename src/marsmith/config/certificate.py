"""Self-signed TLS certificate for development, and the lines of the server config that use it.

TorchServe 0.12.0 offers TLS 1.2 with two RSA ciphers, so the key must be RSA. Over gRPC it reads only PKCS#8.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith import files
from marsmith.config.properties import ENCODING, parse_properties, render_properties
from marsmith.config.server_config import DEFAULT_ADDRESSES
from marsmith.config.tls import pair_problems
from marsmith.errors import MissingDependencyError, UsageError
from marsmith.project import Project

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

KEY_NAME = "key.pem"
CERTIFICATE_NAME = "certificate.pem"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

_KEY_BITS = 3072
# Backdating of the certificate: a clock that is slightly late must not find it not yet valid.
_SKEW = timedelta(minutes=5)
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_PLAIN = re.compile(r"http://", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate.

    Attributes:
        key: PEM, PKCS#8, without a password.
        certificate: PEM.
        hosts: names and addresses in the certificate.
        expires: time of expiry.
    """

    key: bytes = field(repr=False)
    certificate: bytes
    hosts: tuple[str, ...]
    expires: datetime


def folder_of(project: Project) -> Path:
    """Return the folder of the project's key and certificate; git ignores it."""
    return project.root / ".marsmith" / "tls"


def make_pair(hosts: Iterable[str] = (), days: int = 30) -> Pair:
    """Create a key and a self-signed certificate for this machine and ``hosts``.

    The certificate cannot sign others, so trusting it does not extend to other certificates.

    Args:
        hosts: further names and addresses of the server.
        days: validity in days.

    Raises:
        UsageError: a host is not a name or an address, or ``days`` is below 1.
        MissingDependencyError: cryptography is not installed.
    """
    names = tuple(dict.fromkeys([*LOCAL_HOSTS, *hosts]))
    wrong = [host for host in names if not _is_address(host) and not _NAME.fullmatch(host)]
    if wrong or days < 1:
        problem = f"not a host name or an address: {', '.join(wrong)}" if wrong else f"{days} is not a number of days"
        raise UsageError(problem, tip="marsmith certificate --host models.example.com --days 30")
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
    except ModuleNotFoundError:
        raise MissingDependencyError("cryptography", extra="sign") from None
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(text, _self_signed(key, names, expires), names, expires)


def pair_there(folder: Path, hosts: Iterable[str] = ()) -> Pair | None:
    """Return the pair in a folder; None if neither file exists.

    Args:
        folder: folder that ``write_pair`` uses.
        hosts: required names and addresses, besides those of this machine.

    Raises:
        UsageError: one of the two files is missing, or the pair cannot be used; the message lists all problems.
        MissingDependencyError: cryptography is not installed.
    """
    key, certificate = folder / KEY_NAME, folder / CERTIFICATE_NAME
    there = [path for path in (key, certificate) if os.path.lexists(path)]
    if not there:
        return None
    if find_spec("cryptography") is None:
        raise MissingDependencyError("cryptography", extra="sign")
    problems = [problem.message for problem in pair_problems(key, certificate, list({*LOCAL_HOSTS, *hosts}))]
    if len(there) == 1:
        problems = [f"{there[0]} exists, but the other file of the pair does not"]
    if problems:
        raise UsageError("\n".join(problems), tip="marsmith certificate --write --force makes a new pair in its place")
    return _read_pair(key, certificate)


def _read_pair(key: Path, certificate: Path) -> Pair:
    from cryptography import x509

    content = certificate.read_bytes()
    first = x509.load_pem_x509_certificates(content)[0]
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    kinds = (x509.DNSName, x509.IPAddress)
    hosts = tuple(str(host) for kind in kinds for host in names.get_values_for_type(kind))
    return Pair(key.read_bytes(), content, hosts, first.not_valid_after_utc)


def write_pair(folder: Path, pair: Pair, *, force: bool = False) -> tuple[Path, Path]:
    """Write ``key.pem``, readable only by its owner from its first byte on, and ``certificate.pem``.

    Args:
        folder: target folder; it is created with access for its owner only.
        pair: the pair.
        force: whether to replace existing files.

    Returns:
        The paths of the key and the certificate.

    Raises:
        UsageError: one of the files exists.
    """
    key, certificate = folder / KEY_NAME, folder / CERTIFICATE_NAME
    there = [str(path) for path in (key, certificate) if os.path.lexists(path)]
    if there and not force:
        verb = "exist" if len(there) > 1 else "exists"
        raise UsageError(f"{' and '.join(there)} {verb} already", tip="--write uses them, --force replaces them")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write_atomically(key, pair.key, mode=0o600, follow_links=False)
    files.write_atomically(certificate, pair.certificate, mode=0o644, follow_links=False)
    return key, certificate


def config_changes(project: Project, config: Mapping[str, str], key: Path, certificate: Path) -> dict[str, str]:
    """Return the keys of the server config that switch TLS on for every API, with their new values.

    Args:
        project: project of the server config; paths below its root are written relative to it.
        config: the present values.
        key: the file of the private key.
        certificate: the file of the certificate.
    """
    names = (f"{api}_address" for api in ("inference", "management", "metrics"))
    return {
        **{name: _PLAIN.sub("https://", config.get(name, DEFAULT_ADDRESSES[name])) for name in names},
        "enable_grpc_ssl": "true",
        "private_key_file": _relative(key, project.root),
        "certificate_file": _relative(certificate, project.root),
    }


def changed_text(text: str, changes: Mapping[str, str]) -> str:
    """Return the text of a server config with ``changes``; comments and all other lines are kept."""
    from marsmith.config.edit import Edit, edit_properties

    last = {entry.key: entry for entry in parse_properties(text)}
    edits = [
        Edit("set", (key,), value, last[key].line)
        for key, value in changes.items()
        if key in last and last[key].value != value
    ]
    changed = edit_properties(text, edits)
    added = render_properties({key: value for key, value in changes.items() if key not in last})
    if not added:
        return changed
    separator = "" if not changed or changed.endswith("\n") else "\n"
    return f"{changed}{separator}\n# TLS for REST and gRPC, with the pair that `marsmith certificate` made.\n{added}"


def write_changes(project: Project, changes: Mapping[str, str]) -> None:
    """Write ``changes`` into the project's server config, atomically."""
    path = project.server_config
    text = changed_text(path.read_bytes().decode(ENCODING), changes)
    files.write_atomically(path, text.encode(ENCODING))


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _self_signed(key: object, hosts: Sequence[str], expires: datetime) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    if not isinstance(key, RSAPrivateKey):
        raise TypeError("not an RSA key")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"marsmith development, {hosts[-1]}"[:64])])
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _SKEW)
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _general_name(host: str) -> GeneralName:
    from cryptography import x509

    return x509.IPAddress(ip_address(host)) if _is_address(host) else x509.DNSName(host)
