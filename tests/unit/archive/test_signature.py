"""Signatures: ours hold for the official tool, its hold for us, and a wrong key, byte or archive is refused."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marsmith.archive.signature import KeyPasswordError, read_signature, sign, signature_path, verify_signature
from marsmith.cli import main
from marsmith.errors import MarsmithError, UsageError, VerificationError
from support.raw_archives import ours
from support.signing_keys import write_keys

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return ours(tmp_path / "toy-1.0.mar").path


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "ours")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_is_signed_verifies(tmp_path: Path, archive: Path, curve: ec.EllipticCurve) -> None:
    private, public = write_keys(tmp_path, "k", ec.generate_private_key(curve))
    before = archive.read_bytes()
    made = sign(archive, private)
    assert made.path == signature_path(archive) == tmp_path / "toy-1.0.mar.sig"
    assert verify_signature(archive, public) == made
    assert archive.read_bytes() == before


def test_the_fingerprint_is_what_sha256sum_prints_for_the_public_key(archive: Path, keys: tuple[Path, Path]) -> None:
    sign(archive, keys[0])
    printed = subprocess.run(["sha256sum", keys[1]], capture_output=True, text=True, check=True).stdout
    assert read_signature(signature_path(archive)).key_fingerprint == printed.split()[0]


def test_the_statement_is_about_the_archive_file(archive: Path, keys: tuple[Path, Path]) -> None:
    made = sign(archive, keys[0])
    statement = json.loads(made.payload)
    printed = subprocess.run(["sha256sum", archive], capture_output=True, text=True, check=True).stdout
    assert statement["subject"][0]["name"] == "toy-1.0.mar"
    (resource,) = statement["predicate"]["resources"]
    assert resource == {"name": ".", "algorithm": "sha256", "digest": printed.split()[0]}


def test_a_wrong_key_is_refused(tmp_path: Path, archive: Path, keys: tuple[Path, Path]) -> None:
    sign(archive, keys[0])
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(VerificationError, match="signed with another key"):
        verify_signature(archive, other)


def test_a_wrong_key_that_claims_to_be_the_right_one_is_refused(
    tmp_path: Path, archive: Path, keys: tuple[Path, Path]
) -> None:
    right = sign(archive, keys[0]).key_fingerprint
    sign(archive, write_keys(tmp_path, "other")[0])
    bundle = json.loads(signature_path(archive).read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = right
    signature_path(archive).write_text(json.dumps(bundle))
    with pytest.raises(VerificationError, match="not one by this key"):
        verify_signature(archive, keys[1])


def test_a_changed_byte_of_the_archive_is_refused(archive: Path, keys: tuple[Path, Path]) -> None:
    sign(archive, keys[0])
    content = bytearray(archive.read_bytes())
    content[200] ^= 1
    archive.write_bytes(content)
    with pytest.raises(VerificationError, match=r"toy-1\.0\.mar: not the file that was signed"):
        verify_signature(archive, keys[1])


def test_the_signature_of_another_archive_is_refused(tmp_path: Path, archive: Path, keys: tuple[Path, Path]) -> None:
    other = tmp_path / "other.mar"
    other.write_bytes(b"other")
    sign(other, keys[0], output=signature_path(archive))
    with pytest.raises(VerificationError, match=r"the signature is of 'other\.mar'"):
        verify_signature(archive, keys[1])


def test_a_changed_statement_is_refused(archive: Path, keys: tuple[Path, Path]) -> None:
    sign(archive, keys[0])
    bundle = json.loads(signature_path(archive).read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"toy-1.0", b"toy-2.0")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature_path(archive).write_text(json.dumps(bundle))
    with pytest.raises(VerificationError, match="not one by this key"):
        verify_signature(archive, keys[1])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0), bit=st.integers(0, 7))
def test_no_change_of_a_signature_file_raises_anything_but_our_errors(
    archive: Path, keys: tuple[Path, Path], at: int, bit: int
) -> None:
    made = sign(archive, keys[0])
    content = bytearray(made.path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    made.path.write_bytes(content)
    try:
        proved = verify_signature(archive, keys[1])
    except MarsmithError:
        return
    # What still verifies says the same: the change was in a part that proves nothing, such as a key's id.
    assert (proved.payload, proved.signed_digest) == (made.payload, made.signed_digest)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 100_000, '{"mediaType": 1}', "\udcff", '"x"', "1e999"])
def test_a_file_that_is_no_signature_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.sig"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(VerificationError, match="not a model signature"):
        read_signature(path)


def test_a_missing_signature_is_named(archive: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(VerificationError, match=r"toy-1\.0\.mar\.sig: no such signature"):
        verify_signature(archive, keys[1])


def test_keys_of_other_kinds_are_refused(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(UsageError, match="not an ECDSA key"):
        sign(archive, write_keys(tmp_path, "ed", ed25519.Ed25519PrivateKey.generate())[0])
    with pytest.raises(UsageError, match="'secp256k1' is not one of"):
        sign(archive, write_keys(tmp_path, "koblitz", ec.generate_private_key(ec.SECP256K1()))[0])
    with pytest.raises(UsageError, match="not a private key in PEM"):
        sign(archive, archive)
    with pytest.raises(UsageError, match="cannot be read"):
        sign(archive, tmp_path / "none.pem")
    assert not signature_path(archive).exists()


def test_an_encrypted_key_needs_its_password(tmp_path: Path, archive: Path) -> None:
    private, public = write_keys(tmp_path, "locked", password=b"secret")
    with pytest.raises(KeyPasswordError):
        sign(archive, private)
    with pytest.raises(UsageError, match="wrong password"):
        sign(archive, private, password=b"wrong")
    sign(archive, private, password=b"secret")
    verify_signature(archive, public)


def test_a_signature_never_replaces_what_it_is_made_from(archive: Path, keys: tuple[Path, Path]) -> None:
    before = archive.read_bytes()
    for target in (archive, keys[0]):
        with pytest.raises(UsageError, match="would replace"):
            sign(archive, keys[0], output=target)
    assert archive.read_bytes() == before


def test_a_folder_is_not_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="a folder is not signed"):
        sign(ours(tmp_path / "folder", archive_format="no-archive").path, keys[0])


def test_signing_and_verifying_use_no_network(
    archive: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refused)
    sign(archive, keys[0])
    verify_signature(archive, keys[1])


def test_the_commands_sign_and_verify(
    archive: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(archive), "--key", str(keys[1])]) == 1
    assert "no such signature" in capsys.readouterr().out
    assert main(["sign", str(archive), "--key", str(keys[0])]) == 0
    assert main(["verify", str(archive), "--key", str(keys[1])]) == 0
    assert "signed as 'toy-1.0.mar'" in capsys.readouterr().out


def official(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the official tool; skip where it does not start (1.1.1 needs pyOpenSSL without saying so)."""
    tool = shutil.which("model_signing", path=str(Path(sys.executable).parent))
    if tool is None or subprocess.run([tool, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("the model_signing command is not installed, or lacks pyOpenSSL")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_official_tool_verifies_what_we_sign(tmp_path: Path, archive: Path, keys: tuple[Path, Path]) -> None:
    made = sign(archive, keys[0])
    flags = ("--signature", made.path, "--public_key", keys[1])
    assert official("verify", "key", archive, *flags).returncode == 0
    archive.write_bytes(archive.read_bytes() + b"x")
    assert official("verify", "key", archive, *flags).returncode != 0


def test_we_verify_what_the_official_tool_signs(tmp_path: Path, archive: Path, keys: tuple[Path, Path]) -> None:
    made = official("sign", "key", archive, "--private_key", keys[0], "--signature", signature_path(archive))
    assert made.returncode == 0, made.stderr
    assert verify_signature(archive, keys[1]).signed_name == "toy-1.0.mar"
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(VerificationError, match="not the file that was signed"):
        verify_signature(archive, keys[1])
