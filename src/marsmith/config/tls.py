"""TLS of a server config: problems before the start, and the certificates that a client must trust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.config.server_config import Addresses, ListenAddress, addresses
from marsmith.errors import PreflightError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

_MAKE = "marsmith certificate --write makes a pair for development"
_MAKE_NEW = "marsmith certificate --write --force makes a new pair for development"
_KEYSTORE = "openssl pkcs12 -in KEYSTORE -nodes writes key and certificate as PEM"


@dataclass(frozen=True)
class TlsProblem:
    """One reason why TLS would not work, or would not protect.

    Attributes:
        message: what is wrong.
        tip: what to do about it.
    """

    message: str
    tip: str


def uses_tls(config: Mapping[str, str]) -> bool:
    """Return whether any API uses TLS."""
    return bool(_secure(addresses(config)))


def ca_file(config: Mapping[str, str]) -> Path | None:
    """Return the file of certificates that a client of this server must trust; None if no API uses TLS.

    It is the server's own ``certificate_file`` if the chain ends in a self-signed certificate. Otherwise it is the list
    of public authorities that ``requests`` contains.

    Raises:
        PreflightError: the file cannot be read.
    """
    if not uses_tls(config):
        return None
    path = Path(config.get("certificate_file", ""))
    try:
        chain = _certificates(path.read_bytes())
    except OSError as error:
        raise PreflightError(f"cannot read the certificate {path}: {error.strerror}", tip=_MAKE) from None
    if any(each.issuer == each.subject for each in chain):
        return path
    import certifi

    return Path(certifi.where())


def tls_problems(config: Mapping[str, str], now: datetime | None = None) -> list[TlsProblem]:
    """Return the TLS problems of a server config with absolute paths.

    Args:
        config: the effective server config.
        now: time at which validity is checked.
    """
    where = addresses(config)
    secure = _secure(where)
    if not secure:
        return []
    problems = [*_mixed(where), *_sources(config)]
    if problems:
        return problems
    hosts = sorted({each.client_host for each in secure})
    return pair_problems(Path(config["private_key_file"]), Path(config["certificate_file"]), hosts, now)


def pair_problems(
    key_file: Path, certificate_file: Path, hosts: Sequence[str], now: datetime | None = None
) -> list[TlsProblem]:
    """Return the problems of a private key and its certificate.

    Args:
        key_file: the private key.
        certificate_file: the server's certificate, followed by those up to its authority.
        hosts: hosts by which clients on this machine call the server.
        now: time at which validity is checked.
    """
    try:
        problems = [*_private(key_file)]
        content = key_file.read_bytes()
        key, chain = _private_key(content), _certificates(certificate_file.read_bytes())
    except ModuleNotFoundError:
        return [TlsProblem("TLS is checked with the package cryptography", "pip install 'marsmith[sign]'")]
    except OSError as error:
        return [TlsProblem(f"cannot read {error.filename}: {error.strerror}", _MAKE)]
    problems += _key_problems(key, content, key_file)
    problems += _chain_problems(chain, certificate_file, hosts, now or datetime.now(UTC))
    if key is not None and chain and key.public_key() != chain[0].public_key():
        message = f"{key_file} is not the key of the first certificate in {certificate_file}"
        problems.append(TlsProblem(message, "name the pair that belongs together, the server's certificate first"))
    return problems


def _secure(where: Addresses) -> list[ListenAddress]:
    return [endpoint for endpoint in where.all() if endpoint.is_secure]


def _mixed(where: Addresses) -> Iterator[TlsProblem]:
    """Find APIs that send a token in the clear while others use TLS; metrics have no token."""
    plain = [each.key for each in where.all() if not each.is_secure and each.key != "metrics_address"]
    if plain:
        yield TlsProblem(
            f"some APIs use TLS, but {', '.join(plain)} do not: their tokens would be sent in the clear",
            "write https:// in every address, and enable_grpc_ssl=true",
        )
    metrics = where.metrics
    if not metrics.is_secure and not metrics.is_loopback:
        message = f"metrics_address={metrics.url} is open to other machines without TLS"
        yield TlsProblem(message, "write https://, or bind it to 127.0.0.1")


def _sources(config: Mapping[str, str]) -> Iterator[TlsProblem]:
    if "keystore" in config:
        yield TlsProblem(
            "keystore: REST would use it, but gRPC reads only private_key_file and certificate_file", _KEYSTORE
        )
    missing = [key for key in ("private_key_file", "certificate_file") if key not in config]
    if missing and "keystore" not in config:
        message = (
            f"TLS without {' and '.join(missing)}: TorchServe would make up a certificate that no client can trust"
        )
        yield TlsProblem(message, _MAKE)


def _private(path: Path) -> Iterator[TlsProblem]:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        yield TlsProblem(f"the private key {path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")


def _private_key(content: bytes) -> PrivateKeyTypes | None:
    """Parse a key as TorchServe does, in PEM and without a password; None if that fails."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _key_problems(key: PrivateKeyTypes | None, content: bytes, path: Path) -> Iterator[TlsProblem]:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if key is None:
        tip = "TorchServe reads PKCS#8: openssl pkcs8 -topk8 -nocrypt -in OLD.pem -out NEW.pem"
        yield TlsProblem(f"{path} is not a private key in PEM without a password", tip)
    elif not isinstance(key, RSAPrivateKey):
        yield TlsProblem(f"{path} is not an RSA key, and TorchServe offers only ciphers for RSA", _MAKE)
    elif b"-----BEGIN PRIVATE KEY-----" not in content:
        tip = f"openssl pkcs8 -topk8 -nocrypt -in {path} -out NEW.pem"
        yield TlsProblem(f"{path} is not in the form PKCS#8, the only one that gRPC reads", tip)


def _certificates(content: bytes) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(content)
    except ValueError:
        return []


def _chain_problems(chain: list[Certificate], path: Path, hosts: Sequence[str], now: datetime) -> Iterator[TlsProblem]:
    if not chain:
        yield TlsProblem(f"{path} holds no certificate in PEM", _MAKE)
        return
    for each in chain:
        if now >= each.not_valid_after_utc:
            when = each.not_valid_after_utc
            yield TlsProblem(
                f"a certificate in {path} has expired on {when:%Y-%m-%d %H:%M} UTC",
                "renew it; marsmith certificate --write --force makes a new pair for development",
            )
        elif now < each.not_valid_before_utc:
            when = each.not_valid_before_utc
            yield TlsProblem(
                f"a certificate in {path} is not valid before {when:%Y-%m-%d %H:%M} UTC", "is the clock right?"
            )
    missing = [host for host in hosts if not _covers(chain[0], host)]
    if missing:
        yield TlsProblem(
            f"{path} is not good for {', '.join(missing)}, where clients on this machine call the server",
            f"marsmith certificate {' '.join(f'--host {host}' for host in missing)} --write --force makes one that is",
        )


def _covers(certificate: Certificate, host: str) -> bool:
    """Match a host like TLS clients: an address exactly, a name ignoring case, ``*`` for one label on the left."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        known = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
        wild = "*." + host.partition(".")[2]
        return host.lower() in known or wild.lower() in known
