"""Signatures of archives: detached, made with a key, in the OpenSSF model-signing format (v1.0).

A signature is a Sigstore bundle in JSON around a DSSE envelope; the envelope holds an in-toto statement, whose only
resource ``.`` is the archive file with its SHA-256. Keys are ECDSA on P-256, P-384 or P-521, in PEM. Nothing here uses
the network: with a key there is no transparency log and no certificate to ask for. The ``model_signing`` library makes
and accepts the same files; with a key it is not used, because it takes a second to import, which every start of a
server would pay, and reads the archive again for each key. With certificates, see ``certified``, it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith import files
from marsmith.errors import ArchiveError, MissingDependencyError, UsageError, VerificationError
from marsmith.json_reader import read_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

SUFFIX = ".sig"
_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MAX_BYTES = 1 << 20
_KEY_TIP = "openssl ecparam -name prime256v1 -genkey -noout -out PRIVATE.pem"
_PUBLIC_TIP = "openssl ec -in PRIVATE.pem -pubout -out PUBLIC.pem"
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


class KeyPasswordError(UsageError):
    """A private key is encrypted and no password was given, or vice versa."""


@dataclass(frozen=True)
class Signature:
    """Content of a signature file, before verification.

    Attributes:
        path: the file.
        key_fingerprint: SHA-256 in hex of the public key's PEM text, as ``sha256sum public.pem`` prints it; None in
            signatures with certificates, and in those made before model-signing 1.0.
        signed_name: file name of the archive when it was signed.
        signed_digest: SHA-256 in hex of the signed archive.
        payload: the signed statement.
        raw_signature: the ECDSA signature of the statement, in DER.
    """

    path: Path
    key_fingerprint: str | None
    signed_name: str
    signed_digest: str
    payload: bytes
    raw_signature: bytes


def signature_path(archive: Path) -> Path:
    """Return the path of an archive's signature: ``<archive>.sig`` beside it."""
    return archive.with_name(archive.name + SUFFIX)


def remove_signature(archive: Path) -> None:
    """Remove the signature beside an archive."""
    signature_path(archive).unlink(missing_ok=True)


def remove_stale_signature(archive: Path) -> None:
    """Remove the signature beside an archive if it is for other bytes."""
    if not signature_path(archive).exists():
        return
    try:
        signed = read_signature(signature_path(archive))
    except VerificationError:
        # The file has another format, so it is someone else's.
        return
    if signed.signed_digest != _file_digest(archive):
        remove_signature(archive)


def sign(archive: Path, key: Path, *, output: Path | None = None, password: bytes | None = None) -> Signature:
    """Sign an archive file; an older signature is replaced.

    Args:
        archive: archive file; a folder must be packed first.
        key: private key in PEM, ECDSA on P-256, P-384 or P-521.
        output: path of the signature; by default beside the archive.
        password: password of the key, if it is encrypted.

    Raises:
        ArchiveError: the archive or the key cannot be read, or the signature cannot be written.
        UsageError: the format does not support this kind of key, or ``output`` is one of the inputs.
    """
    target = output or signature_path(archive)
    if any(target.exists() and path.exists() and target.samefile(path) for path in (archive, key)):
        raise UsageError(f"{target}: the signature would replace what it is made from")
    private_key = _load_private_key(key, password)
    payload = _statement(archive.name, _file_digest(archive))
    raw = private_key.sign(_to_be_signed(payload), _scheme(private_key.curve.name, key))
    bundle = {
        "mediaType": _BUNDLE_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": _fingerprint(private_key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(raw).decode(), "keyid": ""}],
        },
    }
    _write(target, json.dumps(bundle, separators=(",", ":")).encode() + b"\n")
    return read_signature(target)


def verify_signature(
    archive: Path, *public_keys: Path, signature: Path | None = None, digest: str | None = None
) -> Signature:
    """Verify that the holder of one of the keys signed exactly this file; return the signature.

    Args:
        archive: archive file.
        public_keys: public keys in PEM; at least one.
        signature: path of the signature; by default beside the archive.
        digest: SHA-256 of the archive in hex, if the caller knows it; else the file is read.

    Raises:
        VerificationError: the signature is missing, changed, by another key, or of another archive.
        ArchiveError: a file cannot be read.
        UsageError: a key is not a public key, or of an unsupported kind.
    """
    keys = {path: _load_public_key(path) for path in public_keys}
    found = read_signature(signature or signature_path(archive))
    fingerprints = {path: _fingerprint(key) for path, key in keys.items()}
    named = [path for path in keys if found.key_fingerprint in (None, fingerprints[path])]
    if not named:
        others = ", ".join(fingerprints.values())
        raise VerificationError(
            f"{found.path.name}: signed with another key: {found.key_fingerprint}, not {others}",
            tip="ask the signer for the public key, and trust it only if you know it is theirs",
        )
    if not any(_is_by(found, path, keys[path]) for path in named):
        raise VerificationError(f"{found.path.name}: the signature is not one by this key over its statement")
    actual = digest or _file_digest(archive)
    if actual != found.signed_digest:
        raise VerificationError(
            f"{archive.name}: not the file that was signed: its SHA-256 is {actual}, the signature is of"
            f" {found.signed_name!r} with {found.signed_digest}",
            tip="do not use this archive, or sign it again if you changed it",
        )
    return found


def check_public_key(path: Path) -> None:
    """Raise UsageError if a file is not a public key that can verify signatures."""
    _scheme(_load_public_key(path).curve.name, path)


def _is_by(found: Signature, path: Path, key: ec.EllipticCurvePublicKey) -> bool:
    """Return whether the holder of the key made the signature over its statement."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(found.raw_signature, _to_be_signed(found.payload), _scheme(key.curve.name, path))
    except InvalidSignature:
        return False
    return True


def read_signature(path: Path) -> Signature:
    """Read a signature file without verifying it.

    Raises:
        VerificationError: the file does not exist, or violates the format.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise VerificationError(
            f"{path.name}: no such signature", tip="marsmith sign ARCHIVE --key PRIVATE.pem"
        ) from None
    except OSError as error:
        raise VerificationError(f"{path}: {error.strerror}") from None
    try:
        return _parse(path, text)
    except RecursionError:
        raise VerificationError(f"{path.name}: not a model signature: nested too deeply") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise VerificationError(f"{path.name}: not a model signature: {reason}") from None


def _parse(path: Path, text: bytes) -> Signature:
    bundle = read_json(text)
    _expect("mediaType", bundle["mediaType"], _BUNDLE_TYPE)
    envelope = bundle["dsseEnvelope"]
    _expect("payloadType", envelope["payloadType"], _PAYLOAD_TYPE)
    (only_signature,) = envelope["signatures"]
    payload = base64.b64decode(envelope["payload"], validate=True)
    name, digest = _signed_file(read_json(payload))
    material = bundle["verificationMaterial"]
    # With certificates there is no hint: see ``certified``.
    hint = None if "x509CertificateChain" in material else material["publicKey"].get("hint")
    if not isinstance(hint, str | None):
        raise TypeError("the key's hint is no text")
    raw = base64.b64decode(only_signature["sig"], validate=True)
    return Signature(path, hint or None, name, digest, payload, raw)


def _signed_file(statement: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and SHA-256 of the only file of a statement."""
    _expect("_type", statement["_type"], _STATEMENT_TYPE)
    _expect("predicateType", statement["predicateType"], _PREDICATE_TYPE)
    (subject,) = statement["subject"]
    predicate = statement["predicate"]
    _expect("serialization method", predicate["serialization"]["method"], "files")
    resources = predicate["resources"]
    if len(resources) != 1 or resources[0]["name"] != ".":
        raise ValueError("it signs the files of a folder, not an archive file")
    _expect("algorithm", resources[0]["algorithm"], "sha256")
    name, digest = subject["name"], resources[0]["digest"]
    if not isinstance(name, str) or not isinstance(digest, str):
        raise TypeError("name or digest is no text")
    _expect("subject's digest", subject["digest"]["sha256"], _root_digest(digest))
    return name, digest


def _expect(what: str, value: object, expected: str) -> None:
    if value != expected:
        raise ValueError(f"{what} is {value!r:.80}, not {expected!r}")


def _statement(name: str, digest: str) -> bytes:
    """Return the in-toto statement to sign; ``ignore_paths`` only matters for folders."""
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root_digest(digest)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": serialization,
            "resources": [{"name": ".", "algorithm": "sha256", "digest": digest}],
        },
    }
    return json.dumps(statement, indent=2).encode()


def _root_digest(digest: str) -> str:
    """Return the format's digest over all resources; there is only one."""
    return hashlib.sha256(bytes.fromhex(digest)).hexdigest()


def _to_be_signed(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding of a statement."""
    return b" ".join([b"DSSEv1", b"%d" % len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), b"%d" % len(payload), payload])


def _file_digest(archive: Path) -> str:
    if archive.is_dir():
        raise UsageError(f"{archive}: a folder is not signed", tip="pack it into a .mar first, and sign that")
    try:
        return files.sha256(archive)
    except OSError as error:
        raise ArchiveError(f"{archive}: {error.strerror}") from None


def _write(target: Path, text: bytes) -> None:
    """Replace the target by a complete file."""
    try:
        files.write_atomically(target, text, follow_links=False)
    except OSError as error:
        raise ArchiveError(f"{target}: the signature cannot be written: {error.strerror}") from None


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: the key cannot be read: {error.strerror}") from None


def _load_private_key(path: Path, password: bytes | None) -> ec.EllipticCurvePrivateKey:
    content = _read_key(path)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError:
        raise MissingDependencyError("cryptography", extra="sign") from None
    try:
        key = load_pem_private_key(content, password)
    except TypeError as error:
        raise KeyPasswordError(
            f"{path}: {error}", tip="an encrypted key needs its password, a plain one none"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not a private key in PEM, or a wrong password", tip=_KEY_TIP) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path}: not an ECDSA key", tip=_KEY_TIP)
    return key


def _load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    content = _read_key(path)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError:
        raise MissingDependencyError("cryptography", extra="sign") from None
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not a public key in PEM", tip=_PUBLIC_TIP) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(f"{path}: not an ECDSA key", tip=_KEY_TIP)
    return key


def _scheme(curve: str, path: Path) -> ec.ECDSA:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if curve not in _CURVES:
        raise UsageError(f"{path}: the curve {curve!r} is not one of {', '.join(_CURVES)}", tip=_KEY_TIP)
    algorithm: hashes.HashAlgorithm = getattr(hashes, _CURVES[curve])()
    return ec.ECDSA(algorithm)


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
