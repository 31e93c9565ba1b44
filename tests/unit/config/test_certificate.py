"""The certificate for development, the lines that it changes, and what the preflight says of TLS that cannot work."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from marsmith.cli import main
from marsmith.config.certificate import (
    Pair,
    changed_text,
    config_changes,
    folder_of,
    make_pair,
    write_changes,
    write_pair,
)
from marsmith.config.lint import lint_paths
from marsmith.config.properties import ENCODING, as_mapping, parse_properties
from marsmith.config.server_config import effective_config, read_server_config
from marsmith.config.tls import ca_file, tls_problems
from marsmith.errors import PreflightError, UsageError
from marsmith.project import Project
from marsmith.server import preflight
from support.live_server import make_project
from support.projects import REPOSITORY

COMMITTED = (REPOSITORY / "config.properties").read_text(encoding=ENCODING)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(["models.example.com", "10.1.2.3"], days=2)


@pytest.fixture
def secured(tmp_path: Path, pair: Pair) -> Project:
    """A project whose server config has TLS on, as `marsmith certificate --write` leaves it."""
    project = make_project(tmp_path / "project")
    config = as_mapping(read_server_config(project))
    write_changes(project, config_changes(project, config, *write_pair(folder_of(project), pair)))
    return project


def config_of(project: Project, **other: str) -> dict[str, str]:
    return effective_config(project, read_server_config(project), {}) | other


def right_now() -> datetime:
    # Not once for the file: it is read long before its tests run.
    return datetime.now(UTC)


def problems(project: Project, now: datetime | None = None, **other: str) -> list[str]:
    return [problem.message for problem in tls_problems(config_of(project, **other), now)]


def test_the_certificate_is_good_for_this_machine_and_the_hosts_and_for_no_other_use(pair: Pair) -> None:
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "models.example.com"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "10.1.2.3"]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.not_valid_after_utc == pair.expires
    assert timedelta(hours=47) < pair.expires - right_now() < timedelta(hours=49)


def test_two_pairs_have_nothing_in_common(pair: Pair) -> None:
    other = make_pair()
    assert other.key != pair.key
    numbers = {x509.load_pem_x509_certificate(each.certificate).serial_number for each in (pair, other)}
    assert len(numbers) == 2


def test_python_takes_the_pair_for_one(tmp_path: Path, pair: Pair) -> None:
    key, certificate = write_pair(tmp_path, pair)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)


@pytest.mark.parametrize("host", ["", "a b", "-x", "https://example.com", "example.com:8080", "1.2.3.4/24", "a" * 64])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="not a host name"):
        make_pair([host])
    with pytest.raises(UsageError, match="0 is not a number of days"):
        make_pair(days=0)


def test_the_key_is_its_owners_whatever_the_umask_and_never_replaced_unasked(tmp_path: Path, pair: Pair) -> None:
    umask = os.umask(0)
    try:
        key, certificate = write_pair(tmp_path / "tls", pair)
    finally:
        os.umask(umask)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "tls", key, certificate)] == [0o700, 0o600, 0o644]
    other = make_pair()
    with pytest.raises(UsageError, match=r"key\.pem .* exist already"):
        write_pair(tmp_path / "tls", other)
    assert key.read_bytes() == pair.key
    write_pair(tmp_path / "tls", other, force=True)
    assert (key.read_bytes(), certificate.read_bytes()) == (other.key, other.certificate)
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == ["certificate.pem", "key.pem"]


def test_a_link_in_the_keys_place_is_replaced_and_not_followed(tmp_path: Path, pair: Pair) -> None:
    target = tmp_path / "target"
    (tmp_path / "key.pem").symlink_to(target)
    with pytest.raises(UsageError):
        write_pair(tmp_path, pair)
    write_pair(tmp_path, pair, force=True)
    assert not target.exists()
    assert not (tmp_path / "key.pem").is_symlink()


def test_only_the_lines_about_tls_change_and_comments_stay(tmp_path: Path) -> None:
    project = Project(tmp_path)
    pem = tmp_path / ".marsmith" / "tls"
    changes = config_changes(project, as_mapping(parse_properties(COMMITTED)), pem / "key.pem", pem / "certificate.pem")
    text = changed_text(COMMITTED, changes)
    old, new = COMMITTED.splitlines(), text.splitlines()
    changed = [(before, after) for before, after in zip(old, new, strict=False) if before != after]
    assert changed == [
        (f"{api}_address=http://127.0.0.1:{port}", f"{api}_address=https://127.0.0.1:{port}")
        for api, port in (("inference", 8080), ("management", 8081), ("metrics", 8082))
    ]
    assert new[len(old) :] == [
        "",
        "# TLS for REST and gRPC, with the pair that `marsmith certificate` made.",
        "enable_grpc_ssl=true",
        "private_key_file=.marsmith/tls/key.pem",
        "certificate_file=.marsmith/tls/certificate.pem",
    ]
    assert changed_text(text, changes) == text


def test_a_config_with_the_pair_passes_the_preflight_and_is_its_own_authority(secured: Project) -> None:
    flight = preflight.check(secured)
    certificate = folder_of(secured) / "certificate.pem"
    assert flight.config["private_key_file"] == str(folder_of(secured) / "key.pem")
    assert ca_file(flight.config) == certificate
    assert problems(secured) == []


def test_without_tls_nothing_is_checked_and_nothing_trusted(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", certificate_file="gone.pem")
    assert problems(project) == []
    assert ca_file(config_of(project)) is None


def test_a_certificate_of_an_authority_is_checked_against_the_public_ones(secured: Project) -> None:
    import certifi

    signed = _signed_by_another("127.0.0.1")
    (folder_of(secured) / "certificate.pem").write_bytes(signed)
    assert ca_file(config_of(secured)) == Path(certifi.where())


def _signed_by_another(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject, issuer = (
        x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, text)]) for text in (name, "an authority")
    )
    builder = x509.CertificateBuilder(
        issuer, subject, key.public_key(), 1, right_now(), right_now() + timedelta(days=1)
    )
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_every_problem_of_the_files_is_told(secured: Project, pair: Pair) -> None:
    key, certificate = (folder_of(secured) / name for name in ("key.pem", "certificate.pem"))
    key.chmod(0o640)
    assert problems(secured) == [f"the private key {key} can be read by others (mode 0640)"]
    key.chmod(0o600)
    later, earlier = pair.expires + timedelta(seconds=1), right_now() - timedelta(days=1)
    assert "has expired on" in problems(secured, later)[0]
    assert "is not valid before" in problems(secured, earlier)[0]
    key.write_bytes(make_pair().key)
    assert problems(secured) == [f"{key} is not the key of the first certificate in {certificate}"]
    key.write_text("no key")
    assert problems(secured) == [f"{key} is not a private key in PEM without a password"]
    certificate.write_text("no certificate")
    assert f"{certificate} holds no certificate in PEM" in problems(secured)
    certificate.unlink()
    assert problems(secured) == [f"cannot read {certificate}: No such file or directory"]


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def test_a_key_in_a_form_that_stops_the_server_is_told_before(secured: Project, pair: Pair) -> None:
    key = folder_of(secured) / "key.pem"
    loaded = serialization.load_pem_private_key(pair.key, None)
    assert isinstance(loaded, rsa.RSAPrivateKey)
    key.write_bytes(_pem(loaded, serialization.PrivateFormat.TraditionalOpenSSL))
    assert problems(secured) == [f"{key} is not in the form PKCS#8, the only one that gRPC reads"]
    key.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1()), serialization.PrivateFormat.PKCS8))
    assert "is not an RSA key, and TorchServe offers only ciphers for RSA" in problems(secured)[0]


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (
            {"enable_grpc_ssl": "false"},
            "grpc_inference_port, grpc_management_port do not: their tokens would be sent in the clear",
        ),
        ({"management_address": "http://127.0.0.1:8081"}, "management_address do not: their tokens"),
        ({"metrics_address": "http://0.0.0.0:8082"}, "is open to other machines without TLS"),
        ({"keystore": "/k.p12"}, "gRPC reads only private_key_file and certificate_file"),
        ({"inference_address": "https://other.example.com:8080"}, "is not good for other.example.com"),
        ({"inference_address": "https://models.example.com:8080"}, None),
        ({"inference_address": "https://0.0.0.0:8080"}, None),
        ({"metrics_address": "http://127.0.0.1:8082"}, None),
    ],
)
def test_tls_that_leaves_a_hole_or_that_no_client_could_trust_is_told(
    secured: Project, other: dict[str, Any], problem: str | None
) -> None:
    found = problems(secured, **other)
    assert len(found) == (0 if problem is None else 1)
    assert problem is None or problem in found[0]


def test_https_without_a_certificate_is_refused_with_what_makes_one(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", enable_grpc_ssl="true")
    text = project.server_config.read_text().replace("=http\\://", "=https\\://").replace("=http://", "=https://")
    project.server_config.write_text(text)
    with pytest.raises(PreflightError, match="no client can trust") as error:
        preflight.check(project)
    assert "marsmith certificate --write" in (error.value.tip or "")


def test_lint_has_nothing_to_say_of_the_pair_and_finds_what_is_wrong_with_it_later(secured: Project) -> None:
    def found() -> list[str]:
        return [item.finding.message for item in lint_paths([secured.server_config], secured.root)]

    assert found() == []
    key = folder_of(secured) / "key.pem"
    key.chmod(0o644)
    assert found() == [f"the private key {key} can be read by others (mode 0644)"]


def test_without_write_the_command_prints_the_lines_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path / "p", inference_address="http://127.0.0.1:18080")
    before = project.server_config.read_bytes()
    monkeypatch.chdir(project.root)
    assert main(["certificate", "--host", "models.example.com", "--days", "3"]) == 0
    printed = as_mapping(parse_properties(capsys.readouterr().out))
    assert printed["inference_address"] == "https://127.0.0.1:18080"
    assert printed["private_key_file"] == ".marsmith/tls/key.pem"
    assert project.server_config.read_bytes() == before
    assert (folder_of(project) / "key.pem").exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = make_project(tmp_path / "p")
    monkeypatch.chdir(project.root)
    return project


def pair_files(project: Project) -> list[bytes]:
    return [(folder_of(project) / name).read_bytes() for name in ("key.pem", "certificate.pem")]


def test_write_uses_the_pair_that_is_there(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certificate", "--host", "models.example.com"]) == 0
    made = pair_files(here)
    for _ in range(2):
        assert main(["certificate", "--host", "models.example.com", "--write"]) == 0
        assert pair_files(here) == made
    assert "using the existing pair" in capsys.readouterr().err
    assert problems(here) == []
    assert as_mapping(read_server_config(here))["certificate_file"] == ".marsmith/tls/certificate.pem"
    assert main(["certificate", "--write", "--force"]) == 0
    assert pair_files(here) != made


@pytest.mark.parametrize(
    "fault", ["expired", "other key", "no key", "no certificate", "readable", "another host", "text"]
)
def test_write_refuses_a_pair_that_is_not_fit_and_changes_nothing(
    here: Project, capsys: pytest.CaptureFixture[str], pair: Pair, fault: str
) -> None:
    key, certificate = write_pair(folder_of(here), pair)
    messages = {
        "expired": "has expired",
        "other key": "is not the key of the first certificate",
        "no key": "but the other file of the pair does not",
        "no certificate": "but the other file of the pair does not",
        "readable": "can be read by others",
        "another host": "is not good for other.example.com",
        "text": "holds no certificate in PEM",
    }
    if fault == "expired":
        write_pair(folder_of(here), expired(), force=True)
    elif fault == "other key":
        key.write_bytes(make_pair().key)
    elif fault == "readable":
        key.chmod(0o644)
    elif fault == "text":
        certificate.write_text("none")
    elif fault.startswith("no "):
        (key if fault == "no key" else certificate).unlink()
    config = here.server_config.read_bytes()
    files = {path: path.read_bytes() for path in folder_of(here).iterdir()}
    assert main(["certificate", "--write", "--host", "other.example.com" if "host" in fault else "localhost"]) == 2
    told = capsys.readouterr().err
    assert messages[fault] in told
    assert "--write --force" in told
    assert here.server_config.read_bytes() == config
    assert {path: path.read_bytes() for path in folder_of(here).iterdir()} == files


def expired() -> Pair:
    """A pair that was made ten days ago, for a day less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("marsmith.config.certificate._SKEW", timedelta(days=10))
        patch.setattr("marsmith.config.certificate.timedelta", lambda days: timedelta(days=-days))
        return make_pair(days=1)
