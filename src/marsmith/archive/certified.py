"""Signatures with certificates, made and verified by the library ``model-signing``.

The signature contains the signer's certificates up to the authority, so the verifier needs only the authority's.
Nothing here uses the network. An expired or revoked certificate still proves a signature.
"""

from __future__ import annotations

import base64
import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith import child_processes, files
from marsmith.archive.signature import Signature, read_signature, signature_path
from marsmith.errors import ArchiveError, MissingDependencyError, UsageError, VerificationError
from marsmith.json_reader import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator


def sign_with_certificate(
    archive: Path, key: Path, certificate: Path, chain: Sequence[Path] = (), *, output: Path | None = None
) -> Signature:
    """Sign an archive file; the signature replaces an older one.

    Args:
        archive: a file; folders must be packed first.
        key: private key, PEM, ECDSA on P-256, P-384 or P-521, without a password.
        certificate: certificate of the key, PEM.
        chain: certificates between this one and the authority, PEM.
        output: path of the signature; by default beside the archive.

    Raises:
        ArchiveError: the archive cannot be read, or the signature cannot be written.
        UsageError: the key and the certificate do not belong together, cannot be read, or ``output`` is an input.
        MissingDependencyError: model-signing is not installed.
    """
    target = output or signature_path(archive)
    inputs = (archive, key, certificate, *chain)
    if any(target.exists() and path.exists() and target.samefile(path) for path in inputs):
        raise UsageError(f"{target}: the signature would replace what it is made from")
    _require_file(archive)
    with _library(), child_processes.temporary_folder("marsmith-sign-") as folder:
        from model_signing import signing

        made = folder / "signature"
        try:
            # The library does not accept an empty chain; the same certificate twice proves the same.
            config = signing.Config().use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=list(chain) or [certificate]
            )
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{key} and {certificate}: {error}",
                tip="an ECDSA key without a password and its own certificate, both in PEM",
            ) from None
        config.sign(archive, made)
        _put(made.read_bytes(), target)
    return read_signature(target)


def verify_certified(archive: Path, authorities: Sequence[Path], *, signature: Path | None = None) -> tuple[str, str]:
    """Verify that a signer certified by one of the authorities signed exactly this file.

    Args:
        archive: archive file.
        authorities: certificates of the authorities, PEM.
        signature: path of the signature; by default beside the archive.

    Returns:
        The subject of the signer's certificate, and the SHA-256 of the archive in hex.

    Raises:
        VerificationError: the signature is missing, has no certificate of these authorities, or is of another file.
        ArchiveError: the archive cannot be read.
        UsageError: an authority's certificate cannot be read.
        MissingDependencyError: model-signing is not installed.
    """
    _require_file(archive)
    found = read_signature(signature or signature_path(archive))
    subject = _subject(found.path)
    with _library():
        from cryptography.exceptions import InvalidSignature
        from model_signing import verifying
        from OpenSSL import crypto

        try:
            config = verifying.Config().use_certificate_verifier(certificate_chain=list(authorities))
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise UsageError(f"{', '.join(map(str, authorities))}: not certificates in PEM: {error}") from None
        try:
            config.verify(archive, found.path)
        except crypto.X509StoreContextError as error:
            raise VerificationError(
                f"{found.path.name}: the certificate of {subject!r} is none of this authority's: {error}",
                tip="ask the signer for the authority's certificate, and trust it only if you know that it is theirs",
            ) from None
        except InvalidSignature:
            raise VerificationError(f"{found.path.name}: the signature is not one by its certificate") from None
        except (ValueError, KeyError, TypeError) as error:
            raise VerificationError(
                f"{archive.name}: not what was signed: {error}",
                tip="do not use this archive, or sign it again if you changed it",
            ) from None
    return subject, found.signed_digest


def _subject(path: Path) -> str:
    """Return the subject of the certificate in a signature.

    Raises:
        VerificationError: it contains no certificate.
    """
    from cryptography import x509

    try:
        bundle = read_json(path.read_bytes())
        first = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"]
        return x509.load_der_x509_certificate(base64.b64decode(first, validate=True)).subject.rfc4514_string()
    except (ValueError, KeyError, TypeError, IndexError):
        raise VerificationError(
            f"{path.name}: no certificate in it", tip="a signature with a key alone is verified with --key PUBLIC.pem"
        ) from None


@contextmanager
def _library() -> Iterator[None]:
    """Use the library without its progress messages and its deprecation warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(str(error.name), extra="sign") from None
    finally:
        logging.disable(before)


def _require_file(archive: Path) -> None:
    if archive.is_dir():
        raise UsageError(f"{archive}: a folder is not signed", tip="pack it into a .mar first, and sign that")
    if not archive.is_file():
        raise ArchiveError(f"{archive}: no such file")


def _put(content: bytes, target: Path) -> None:
    try:
        files.write_atomically(target, content, follow_links=False)
    except OSError as error:
        raise ArchiveError(f"{target}: the signature cannot be written: {error.strerror}") from None
