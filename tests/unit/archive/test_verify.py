"""Verification: any changed, added or missing byte of an archive of ours is refused, and the member is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from marsmith.archive import Archive, Member
from marsmith.archive.examples import ValidatedExample, render_examples
from marsmith.archive.verify import Verification, verify
from marsmith.cli import main
from marsmith.errors import ArchiveError, FormatError, MarsmithError, VerificationError
from marsmith.runtime.replay import replay_checks
from support.long_tests import mostly_long
from support.raw_archives import MANIFEST, Entry, manifest_entry, ours, raw_zip, written

FORMATS = [("zip-store", "a.mar"), ("default", "a.mar"), ("tgz", "a.tar.gz"), ("no-archive", "a")]


def details(verification: Verification) -> str:
    return "\n".join(check.detail for check in verification.failures)


def entries_of(path: Path) -> list[Entry]:
    """Return an archive's members so that ``raw_zip`` prints the very same file again."""
    with zipfile.ZipFile(path) as archive:
        entries = [Entry(name, archive.read(name)) for name in archive.namelist()]
    assert raw_zip(entries) == path.read_bytes()
    return entries


def rebuilt(path: Path, entries: list[Entry], **options: Any) -> Archive:
    path.write_bytes(raw_zip(entries, **options))
    return Archive.open(path)


def with_sums(entries: list[Entry]) -> list[Entry]:
    """Return the entries with a list of digests that fits them."""
    kept = sorted((e for e in entries if e.name != "MAR-INF/SHA256SUMS"), key=lambda entry: entry.name)
    lines = "".join(f"{hashlib.sha256(entry.content).hexdigest()}  {entry.name!s}\n" for entry in kept)
    return [*(e for e in entries if e.name != "MAR-INF/SHA256SUMS"), Entry("MAR-INF/SHA256SUMS", lines.encode())]


@pytest.mark.parametrize(("archive_format", "name"), FORMATS)
def test_an_archive_of_ours_verifies(tmp_path: Path, archive_format: Any, name: str) -> None:
    verification = verify(ours(tmp_path / name, archive_format=archive_format))
    assert verification.require() is verification
    outcomes = {check.name: check.outcome for check in verification.checks}
    assert outcomes["structure"] == outcomes["manifest"] == outcomes["digests"] == "ok"


@pytest.mark.parametrize("step", mostly_long("requests", [1, 13], [13]))
def test_every_single_changed_byte_of_an_archive_is_refused(tmp_path: Path, step: int) -> None:
    original = ours(tmp_path / "a.mar").path.read_bytes()
    path = tmp_path / "b.mar"
    accepted = []
    for at in range(0, len(original), step):
        for change in (0x01, 0x20, 0xFF):
            changed = bytearray(original)
            changed[at] ^= change
            path.write_bytes(changed)
            try:
                verify(Archive.open(path), environment=False).require()
            except (ArchiveError, FormatError):
                continue
            accepted.append((at, change))
    assert accepted == []


@pytest.mark.parametrize("cut", [1, 22, 100])
def test_a_shortened_or_lengthened_archive_is_refused(tmp_path: Path, cut: int) -> None:
    original = ours(tmp_path / "a.mar").path.read_bytes()
    for content in (original[:-cut], original[cut:], original + bytes(cut), bytes(cut) + original):
        (tmp_path / "b.mar").write_bytes(content)
        with pytest.raises(ArchiveError):
            Archive.open(tmp_path / "b.mar")


def test_a_changed_member_with_a_true_crc_is_named(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    next(entry for entry in entries if entry.name == "handler.py").content += b"\n"
    verification = verify(rebuilt(tmp_path / "a.mar", entries))
    assert "changed: member 'handler.py'" in details(verification)
    with pytest.raises(VerificationError, match=r"a\.mar: digests: changed: member 'handler\.py'"):
        verification.require()


def test_an_added_member_is_named(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    verification = verify(rebuilt(tmp_path / "a.mar", [*entries[:-1], Entry("zz.py", b"evil"), entries[-1]]))
    assert details(verification) == "added: member 'zz.py' is in the archive and not listed"


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    kept = [entry for entry in entries if entry.name != "index_to_name.json"]
    verification = verify(rebuilt(tmp_path / "a.mar", kept))
    assert details(verification) == "missing: member 'index_to_name.json' is listed and not in the archive"


def test_all_failures_are_listed_not_only_the_first(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    kept = [entry for entry in entries if entry.name not in {"index_to_name.json", "model.pt"}]
    with pytest.raises(VerificationError) as caught:
        verify(rebuilt(tmp_path / "a.mar", kept)).require()
    assert "serializedFile: no member 'model.pt'" in caught.value.message
    assert "missing: member 'index_to_name.json'" in caught.value.message
    assert "missing: member 'model.pt'" in caught.value.message


def test_a_damaged_member_does_not_hide_another(tmp_path: Path) -> None:
    archive = ours(tmp_path / "a.mar")
    content = bytearray(archive.path.read_bytes())
    for name in (b"minWorkers", b"def handle"):
        content[content.index(name)] ^= 1
    archive.path.write_bytes(content)
    failures = details(verify(Archive.open(archive.path)))
    assert "member 'handler.py': its content has CRC" in failures
    assert "member 'model-config.yaml': its content has CRC" in failures


@pytest.mark.parametrize(
    "change",
    [
        {"date": 0x5321},
        {"time": 1},
        {"flags": 2},
        {"needed": 10},
        {"extra": struct.pack("<2H4s", 0x4242, 4, b"note")},
        {"made": 0x31E},
        {"internal": 1},
        {"external": 0o100755 << 16},
    ],
)
def test_headers_with_anything_of_their_own_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    entries[2].both = change
    assert f"member {entries[2].name!r}: its " in details(verify(rebuilt(tmp_path / "a.mar", entries)))


def test_another_order_of_members_is_refused(tmp_path: Path) -> None:
    first, *others = entries_of(ours(tmp_path / "a.mar").path)
    assert "not in order" in details(verify(rebuilt(tmp_path / "a.mar", [*others, first])))


def test_an_entry_for_a_folder_is_refused(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    folder = Entry("a/", central={"external": 0o040755 << 16})
    assert "member 'a/': an entry for a folder" in details(verify(rebuilt(tmp_path / "a.mar", [*entries, folder])))


def test_digests_listed_in_another_order_are_refused(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    lines = entries[-1].content.splitlines(keepends=True)
    entries[-1].content = b"".join(reversed(lines))
    assert "is not sorted" in details(verify(rebuilt(tmp_path / "a.mar", entries)))


def test_a_manifest_printed_in_another_way_is_refused(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    entries[0].content = json.dumps(json.loads(entries[0].content)).encode()
    assert "not printed as marsmith prints it" in details(verify(rebuilt(tmp_path / "a.mar", with_sums(entries))))


def test_an_archive_cannot_pass_as_one_of_another_tool(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    no_sums = verify(rebuilt(tmp_path / "b.mar", entries[:-1]))
    assert "MAR-INF/SHA256SUMS is missing" in details(no_sums)
    manifest = json.loads(entries[0].content)
    del manifest["marsmith"]
    entries[0].content = json.dumps(manifest).encode()
    assert "lacks the key 'marsmith'" in details(verify(rebuilt(tmp_path / "c.mar", with_sums(entries))))


def test_a_later_format_is_not_taken_for_this_one(tmp_path: Path) -> None:
    entries = entries_of(ours(tmp_path / "a.mar").path)
    entries[0].content = entries[0].content.replace(b'"formatVersion": 1', b'"formatVersion": 2')
    assert "formatVersion: 2 is not 1" in details(verify(rebuilt(tmp_path / "a.mar", with_sums(entries))))


@pytest.mark.parametrize(("archive_format", "name"), FORMATS[2:])
def test_changes_in_the_other_formats_are_named(tmp_path: Path, archive_format: Any, name: str) -> None:
    folder = ours(tmp_path / "a", archive_format="no-archive").path
    (folder / "handler.py").write_text("evil")
    (folder / "new.py").write_text("evil")
    (folder / "index_to_name.json").unlink()
    path = folder
    if archive_format == "tgz":
        path = Path(shutil.make_archive(str(tmp_path / "b"), "gztar", tmp_path, "a"))
    failures = details(verify(Archive.open(path)))
    assert "changed: member 'handler.py'" in failures
    assert "added: member 'new.py'" in failures
    assert "missing: member 'index_to_name.json'" in failures


def test_a_changed_byte_of_a_tar_changes_its_content_or_is_refused(tmp_path: Path) -> None:
    path = ours(tmp_path / "a.tar.gz", archive_format="tgz").path
    original = path.read_bytes()
    expected = Archive.open(path).member_digests()
    for at in range(0, len(original), 3):
        changed = bytearray(original)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        try:
            archive = Archive.open(path)
            verify(archive, environment=False).require()
        except MarsmithError:
            continue
        assert archive.member_digests() == expected


def test_an_archive_of_another_tool_is_checked_as_far_as_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(raw_zip([manifest_entry(), Entry("h.py", b"pass")]))
    verification = verify(Archive.open(tmp_path / "a.mar")).require()
    (digests,) = [check for check in verification.checks if check.name == "digests"]
    assert digests.outcome == "warning"
    assert "its content cannot be verified" in digests.detail


def test_a_damaged_member_of_another_tools_archive_is_named(tmp_path: Path) -> None:
    lie = {"crc": zlib.crc32(b"something else")}
    (tmp_path / "a.mar").write_bytes(raw_zip([manifest_entry(), Entry("h.py", b"pass", both=lie)]))
    assert "member 'h.py': its content has CRC" in details(verify(Archive.open(tmp_path / "a.mar")))


def test_a_manifest_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(raw_zip([manifest_entry()]))
    assert details(verify(Archive.open(tmp_path / "a.mar"))) == "handler: no member 'h.py'"


@pytest.mark.parametrize("handler", ["image_classifier", "base_handler"])
def test_a_built_in_handler_needs_no_member(tmp_path: Path, handler: str) -> None:
    manifest = MANIFEST.replace(b"h.py", handler.encode())
    (tmp_path / "a.mar").write_bytes(raw_zip([Entry("MAR-INF/MANIFEST.json", manifest)]))
    verify(Archive.open(tmp_path / "a.mar")).require()


def test_an_environment_that_differs_is_a_warning(tmp_path: Path) -> None:
    recorded = Member("MAR-INF/environment.txt", b"python==3.9.1\nno-such-package==1.0\n")
    verification = verify(ours(tmp_path / "a.mar", more=[recorded]))
    assert verification.ok
    texts = [check.detail for check in verification.checks if check.outcome == "warning"]
    assert any("3.9.1" in text for text in texts)
    assert any("no-such-package" in text for text in texts)
    quiet = verify(Archive.open(tmp_path / "a.mar"), environment=False)
    assert not [check for check in quiet.checks if check.name == "environment"]


def test_an_environment_that_is_damaged_is_refused(tmp_path: Path) -> None:
    verification = verify(ours(tmp_path / "a.mar", more=[Member("MAR-INF/environment.txt", b"what?\n")]))
    assert "environment.txt" in details(verification)


ECHO = (
    b"def handle(data, context):\n    return None if data is None else [{'size': len(row['body'])} for row in data]\n"
)


def with_examples(target: Path, examples: str, handler: bytes = ECHO) -> Archive:
    archive = ours(target.with_name("plain.mar"))
    members = [Member(name, archive.read(name)) for name in archive.members if "/" not in name and name != "handler.py"]
    members += [
        Member("handler.py", handler),
        Member("MAR-INF/examples/examples.json", examples.encode()),
        Member("MAR-INF/examples/cat.bin", b"meow"),
    ]
    return written(archive.manifest, members, target)


def example(size: int, name: str = "cat.bin") -> str:
    return render_examples([ValidatedExample(name, "application/octet-stream", 200, {"size": size}, None, 0.0)])


def test_a_replay_that_gets_the_validated_replies_holds(tmp_path: Path) -> None:
    verification = verify(with_examples(tmp_path / "a.mar", example(4)), replay=replay_checks)
    assert [check.outcome for check in verification.require().checks if check.name == "replay"] == ["ok"]


def test_a_replay_that_gets_another_reply_is_refused(tmp_path: Path) -> None:
    verification = verify(with_examples(tmp_path / "a.mar", example(5)), replay=replay_checks)
    assert "4 instead of 5" in details(verification)


def test_no_code_runs_from_an_archive_that_failed(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    handler = f"open({str(trap)!r}, 'w')\n".encode() + ECHO
    archive = with_examples(tmp_path / "a.mar", example(4), handler)
    entries = entries_of(archive.path)
    next(entry for entry in entries if entry.name == "handler.py").content += b"\n"
    verification = verify(rebuilt(archive.path, entries), replay=replay_checks)
    assert [check.outcome for check in verification.checks if check.name == "replay"] == ["skipped"]
    assert not trap.exists()


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "dog.bin"])
def test_an_example_whose_input_lies_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    verification = verify(with_examples(tmp_path / "a.mar", example(4, name)), replay=replay_checks)
    said = details(verification)
    assert f"no member {name!r}" in said or f"{name!r} is not a file name" in said


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", '[{"input": 1}]', "[" * 100_000])
def test_examples_that_are_no_examples_are_refused(tmp_path: Path, text: str) -> None:
    assert "examples.json" in details(verify(with_examples(tmp_path / "a.mar", text)))


def test_the_command_names_what_changed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ours(tmp_path / "a.mar").path
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.endswith("a.mar: verified\n")
    content = path.read_bytes().replace(b"top_k: 5", b"top_k: 6")
    path.write_bytes(content)
    assert main(["verify", str(path)]) == 1
    out = capsys.readouterr().out
    assert "member 'model-config.yaml': its content has CRC" in out
    assert out.endswith("a.mar: refused, 1 failed\n")


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ours(tmp_path / "a.mar").path
    path.write_bytes(path.read_bytes() + b"x")
    assert main(["verify", str(path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False
    assert printed["checks"][0]["outcome"] == "failed"
    assert "after its end record" in printed["checks"][0]["detail"]
