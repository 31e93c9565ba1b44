"""What ``marsmith inspect`` shows, of archives of every make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsmith.archive import Archive, Member
from marsmith.archive.examples import ValidatedExample, render_examples
from marsmith.cli import main
from support.projects import REPOSITORY
from support.raw_archives import MANIFEST, Entry, manifest_entry, ours, raw_tar, raw_zip, tar_member

GOLDEN = REPOSITORY / "tests" / "golden" / "inspect.txt"
EXPORT = {
    "format": "torchscript-trace",
    "precision": "float32",
    "inputs": [{"name": "images", "dtype": "uint8", "shape": ["N", 3, 224, 224]}],
    "outputs": [{"name": "probabilities", "dtype": "float32", "shape": ["N", 1000]}],
}
EXAMPLES = [
    ValidatedExample("cat.jpg", "image/jpeg", 200, {"tabby": 0.61, "tiger cat": 0.22}, None, 0.01),
    ValidatedExample("noise.bin", "application/octet-stream", 200, None, "ab" * 32, 0.0),
]
# Sixty lines that stand for more values than there are atoms in a gram.
LAUGHS = b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 60))


def full(path: Path) -> Archive:
    """Build an archive that has every part."""
    more = [
        Member("MAR-INF/export.json", json.dumps(EXPORT).encode()),
        Member("MAR-INF/environment.txt", b"python==3.11.7\ntorch==2.15.0\n"),
        Member("MAR-INF/examples/examples.json", render_examples(EXAMPLES).encode()),
        Member("MAR-INF/examples/cat.jpg", b"meow"),
        Member("MAR-INF/examples/noise.bin", b"hiss"),
    ]
    return ours(path, more=more)


def test_the_text_is_the_golden_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full(Path("toy-1.0.mar"))
    assert main(["inspect", "toy-1.0.mar"]) == 0
    assert capsys.readouterr().out == GOLDEN.read_text(encoding="utf-8")


def test_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = full(tmp_path / "toy-1.0.mar")
    assert main(["inspect", str(archive.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["version"], shown["kind"], shown["format_version"]) == ("toy", "1.0", "mar", 1)
    assert shown["digest"] == archive.digest()
    assert shown["size"] == archive.path.stat().st_size
    assert {member["name"] for member in shown["members"]} == archive.members.keys()
    assert shown["export"] == EXPORT
    assert shown["model_config"] == {"minWorkers": 1, "handler": {"top_k": 5}}
    assert shown["environment"] == {"python": "3.11.7", "torch": "2.15.0"}
    assert shown["examples"][0]["top"] == "tabby 0.61"
    assert shown["signature"] is None


def test_who_signed_is_shown_as_a_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    from marsmith.archive.signature import sign
    from support.signing_keys import write_keys

    archive = ours(tmp_path / "a.mar")
    made = sign(archive.path, write_keys(tmp_path, "k")[0])
    assert main(["inspect", str(archive.path)]) == 0
    out = capsys.readouterr().out
    assert f"key   {made.key_fingerprint}" in out
    assert "of    this archive" in out
    assert "not verified: marsmith verify" in out
    (tmp_path / "b.mar").write_bytes(full(tmp_path / "c.mar").path.read_bytes())
    (tmp_path / "b.mar.sig").write_bytes(made.path.read_bytes())
    assert main(["inspect", str(tmp_path / "b.mar")]) == 0
    assert "of    another archive" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["mar", "tar.gz", "folder"])
def test_archives_of_other_tools_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / "a"
    if kind == "mar":
        path.write_bytes(raw_zip([manifest_entry(), Entry("h.py", b"pass" * 50, deflate=True)]))
    elif kind == "tar.gz":
        path.write_bytes(raw_tar([tar_member("m/MAR-INF/MANIFEST.json", MANIFEST), tar_member("m/h.py", b"pass" * 50)]))
    else:
        (path / "MAR-INF").mkdir(parents=True)
        (path / "MAR-INF" / "MANIFEST.json").write_bytes(MANIFEST)
        (path / "h.py").write_bytes(b"pass" * 50)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("m 1.0\n")
    assert f"({kind}," in out
    assert "another tool" in out
    assert "  200  h.py" in out


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (b"a: &a [1, 2]\nb: *a\n", {"a": [1, 2], "b": [1, 2]}),
        (b"a: [", None),
        (b"a: 2001-13-45\n", {"a": "2001-13-45"}),
        (b"[" * 5000, None),
        (
            b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 60)),
            None,
        ),
    ],
)
def test_a_model_config_that_is_a_trap_is_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: bytes, shown: object
) -> None:
    manifest = json.loads(MANIFEST)
    manifest["model"]["configFile"] = "c.yaml"
    entries = [Entry("MAR-INF/MANIFEST.json", json.dumps(manifest).encode()), Entry("c.yaml", config)]
    (tmp_path / "a.mar").write_bytes(raw_zip(entries))
    assert main(["inspect", str(tmp_path / "a.mar"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["model_config"]
    assert printed == shown or (shown is None and "problem" in printed)


def test_an_archive_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads(MANIFEST)
    manifest["model"]["modelVersion"] = "\x1b[2J\u202e1.0"
    entry = Entry("MAR-INF/MANIFEST.json", json.dumps(manifest).encode())
    (tmp_path / "a.mar").write_bytes(raw_zip([entry]))
    assert main(["inspect", str(tmp_path / "a.mar")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\u001b[2J\\u202e1.0" in out


def test_what_is_no_archive_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none.mar")]) == 1
    assert "no such file" in capsys.readouterr().err
