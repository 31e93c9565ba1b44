"""Signatures with certificates: an authority vouches for the signer, and the official tool agrees with us."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from marsmith.archive.certified import sign_with_certificate, verify_certified
from marsmith.archive.signature import (
    remove_stale_signature,
    sign,
    signature_path,
    verify_signature,
)
from marsmith.cli import main
from marsmith.errors import ArchiveError, UsageError, VerificationError
from support.raw_archives import ours
from support.signing_keys import write_keys

pytest.importorskip("cryptography")
pytest.importorskip("OpenSSL")
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID


class Signer(NamedTuple):
    """A signer's key and certificate, that of who issued it, and the authority's."""

    key: Path
    certificate: Path
    chain: Path
    authority: Path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, signs: bool
) -> bytes:
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    usage = x509.KeyUsage(signs, False, False, False, False, not signs, False, False, False)
    builder = (
        x509.CertificateBuilder(_name(issuer), _name(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        # Long gone: it was good when it was issued.
        .not_valid_after(begin + timedelta(days=2 if signs else 300))
        .add_extension(x509.BasicConstraints(ca=not signs, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    return builder.sign(by, hashes.SHA256()).public_bytes(Encoding.PEM)


def make_signer(folder: Path, name: str, *, signs: bool = True) -> Signer:
    root, middle, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    key, _ = write_keys(folder, name, leaf)
    paths = Signer(key, *(folder / f"{name}.{kind}.crt" for kind in ("leaf", "middle", "root")))
    paths.certificate.write_bytes(_certificate(name, leaf, f"{name} middle", middle, signs=signs))
    paths.chain.write_bytes(_certificate(f"{name} middle", middle, f"{name} root", root, signs=False))
    paths.authority.write_bytes(_certificate(f"{name} root", root, f"{name} root", root, signs=False))
    return paths


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return ours(tmp_path / "toy-1.0.mar").path


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return make_signer(tmp_path, "ours")


def test_who_trusts_the_authority_trusts_the_signer(archive: Path, signer: Signer) -> None:
    made = sign_with_certificate(archive, signer.key, signer.certificate, [signer.chain])
    assert made.signed_name == "toy-1.0.mar"
    assert made.key_fingerprint is None
    assert verify_certified(archive, [signer.authority]) == ("CN=ours", made.signed_digest)
    # The key of the certificate holds too.
    assert verify_signature(archive, signer.key.with_name("ours.pub.pem")) == made


def test_another_authority_and_a_gap_in_the_chain_are_refused(tmp_path: Path, archive: Path, signer: Signer) -> None:
    other = make_signer(tmp_path, "theirs")
    sign_with_certificate(archive, signer.key, signer.certificate, [signer.chain])
    with pytest.raises(VerificationError, match="the certificate of 'CN=ours' is none of this authority's"):
        verify_certified(archive, [other.authority])
    sign_with_certificate(archive, signer.key, signer.certificate)
    with pytest.raises(VerificationError, match="is none of this authority's"):
        verify_certified(archive, [signer.authority])


def test_a_changed_byte_is_refused_and_the_signature_goes_with_its_archive(archive: Path, signer: Signer) -> None:
    sign_with_certificate(archive, signer.key, signer.certificate, [signer.chain])
    remove_stale_signature(archive)
    assert signature_path(archive).exists()
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(VerificationError, match="not what was signed: Signature mismatch"):
        verify_certified(archive, [signer.authority])
    remove_stale_signature(archive)
    assert not signature_path(archive).exists()


def test_a_certificate_that_is_not_for_signing_is_refused(tmp_path: Path, archive: Path) -> None:
    wrong = make_signer(tmp_path, "wrong", signs=False)
    sign_with_certificate(archive, wrong.key, wrong.certificate, [wrong.chain])
    with pytest.raises(VerificationError, match="cannot be used for signing"):
        verify_certified(archive, [wrong.authority])


def test_inputs_that_do_not_fit_are_named_and_nothing_is_written(tmp_path: Path, archive: Path, signer: Signer) -> None:
    other = make_signer(tmp_path, "theirs")
    for key, certificate in (
        (signer.key, other.certificate),
        (tmp_path / "absent", signer.certificate),
        (signer.certificate, signer.certificate),
        (signer.key, signer.key),
        (write_keys(tmp_path, "locked", password=b"secret")[0], signer.certificate),
    ):
        with pytest.raises(UsageError) as caught:
            sign_with_certificate(archive, key, certificate, [signer.chain])
        assert key.name in caught.value.message
        assert not signature_path(archive).exists()
    with pytest.raises(UsageError, match="would replace"):
        sign_with_certificate(archive, signer.key, signer.certificate, output=signer.certificate)
    with pytest.raises(ArchiveError, match="no such file"):
        sign_with_certificate(tmp_path / "absent.mar", signer.key, signer.certificate)
    with pytest.raises(UsageError, match="a folder is not signed"):
        sign_with_certificate(tmp_path, signer.key, signer.certificate)


def test_what_cannot_be_verified_is_said(tmp_path: Path, archive: Path, signer: Signer) -> None:
    with pytest.raises(VerificationError, match="no such signature"):
        verify_certified(archive, [signer.authority])
    sign(archive, signer.key)
    with pytest.raises(VerificationError, match="no certificate in it"):
        verify_certified(archive, [signer.authority])
    sign_with_certificate(archive, signer.key, signer.certificate, [signer.chain])
    with pytest.raises(UsageError, match="cannot be read"):
        verify_certified(archive, [tmp_path / "absent"])
    with pytest.raises(UsageError, match="not certificates in PEM"):
        verify_certified(archive, [signer.key])


def test_the_commands_sign_and_verify_with_certificates(
    archive: Path, signer: Signer, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = ("--key", str(signer.key))
    assert main(["sign", str(archive), *keys, "--chain", str(signer.chain)]) == 2
    assert "--chain needs --certificate" in capfd.readouterr().err
    assert (
        main(["sign", str(archive), *keys, "--certificate", str(signer.certificate), "--chain", str(signer.chain)]) == 0
    )
    assert capfd.readouterr().err == ""
    assert main(["verify", str(archive), "--authority", str(signer.authority)]) == 0
    assert "signed by CN=ours" in capfd.readouterr().out
    assert main(["verify", str(archive), "--authority", str(signer.certificate.with_name("ours.middle.crt"))]) == 1
    assert "none of this authority's" in capfd.readouterr().out


def test_the_official_tool_verifies_what_we_sign_and_we_what_it_signs(archive: Path, signer: Signer) -> None:
    def official(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    signature = signature_path(archive)
    sign_with_certificate(archive, signer.key, signer.certificate, [signer.chain])
    trust = ("--signature", signature, "--certificate_chain", signer.authority)
    done = official("verify", "certificate", archive, *trust)
    assert done.returncode == 0, done.stderr
    signature.unlink()
    flags = ("--private_key", signer.key, "--signing_certificate", signer.certificate)
    done = official(
        "sign", "certificate", archive, *flags, "--certificate_chain", signer.chain, "--signature", signature
    )
    assert done.returncode == 0, done.stderr
    assert verify_certified(archive, [signer.authority])[0] == "CN=ours"
