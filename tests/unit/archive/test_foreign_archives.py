"""Archives of other tools: read as TorchServe reads them, and made clean by ``marsmith repack``."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.archive import Archive
from marsmith.archive.manifest import parse_manifest
from marsmith.archive.store import load_items
from marsmith.build.pack import PackRequest, pack
from marsmith.build.repack import repack
from marsmith.cli import main
from marsmith.cli.output import json_text, printable_lines
from marsmith.errors import ConfigError, HostileArchiveError, MarsmithError, UsageError
from marsmith.names import check_model_version, check_named_version, is_hidden, split_model_reference
from marsmith.server.selection import select

HANDLER = b"def handle(data, context):\n    return data\n" * 20
MODEL = {"modelName": "m", "modelVersion": "1.0", "handler": "h.py:handle"}


class Streamed(io.RawIOBase):
    """A target that cannot go back, as a pipe: sizes are written behind each content."""

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += data
        return len(data)


def streamed(path: Path, manifest: object, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    target = Streamed()
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("h.py", HANDLER)
    path.write_bytes(target.content)
    return path


def by_hand(path: Path, packed: bytes, described: bytes, content: bytes = HANDLER) -> Path:
    """Write a zip of one deflated member by hand: with these packed bytes, and this descriptor behind them."""
    crc, name = zlib.crc32(content), b"MAR-INF/MANIFEST.json"
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 8, 8, 0, 0x21, 0, 0, 0, len(name), 0) + name
    body = local + packed + described
    central = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 20, 20, 8, 8, 0, 0x21, crc, len(packed), len(content), len(name), 0, 0, 0, 0, 0, 0
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central + name), len(body), 0)
    path.write_bytes(body + central + name + end)
    return path


def deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(content) + deflater.flush()


def test_a_streamed_zip_is_read_served_with_a_warning_and_made_clean(tmp_path: Path) -> None:
    manifest = {"model": {**MODEL, "modelVersion": 1.0, "configFile": None}, "createdOn": None, "by": "them"}
    old = streamed(tmp_path / "old.mar", manifest)
    archive = Archive.open(old)
    assert archive.read("h.py") == HANDLER
    assert any("streamed" in problem for problem in archive.layout_problems())
    selection = select(load_items(tmp_path, "all"))
    assert [stored.version for stored in selection.served] == [("m", "1.0")]
    assert len(selection.served[0].manifest.noncanonical) == 2
    new = Archive.open(repack(old).path)
    assert new.layout_problems() == []
    assert new.read("h.py") == HANDLER
    assert new.manifest.noncanonical == ()
    assert (new.manifest.model_version, new.manifest.runtime, new.manifest.extra) == ("1.0", "python", {"by": "them"})


def test_a_streamed_zip_that_torchserve_cannot_read_is_left_out_by_name(tmp_path: Path) -> None:
    streamed(tmp_path / "old.mar", {"model": MODEL}, zipfile.ZIP_STORED)
    [left_out] = select(load_items(tmp_path, "all")).left_out
    assert left_out.file == "old.mar"
    assert "stored with a data descriptor" in left_out.reason


@pytest.mark.parametrize("signature", [b"PK\7\x08", b""])
def test_a_descriptor_may_lack_its_signature(tmp_path: Path, signature: bytes) -> None:
    content = json.dumps({"model": MODEL}).encode()
    packed = deflated(content)
    described = signature + struct.pack("<3L", zlib.crc32(content), len(packed), len(content))
    assert Archive.open(by_hand(tmp_path / "a.mar", packed, described, content)).manifest.model_name == "m"


@pytest.mark.parametrize(
    ("packed", "described", "reason"),
    [
        (deflated(HANDLER), (7, len(deflated(HANDLER)), len(HANDLER)), "does not say what the directory says"),
        (deflated(HANDLER), (zlib.crc32(HANDLER), 1, len(HANDLER)), "does not say what the directory says"),
        # Java would look for the descriptor, and the next member, where the compressed data really ends.
        (deflated(HANDLER) + b"hidden", None, "ends before its compressed size"),
    ],
)
def test_a_descriptor_that_lies_is_refused(
    tmp_path: Path, packed: bytes, described: tuple[int, int, int] | None, reason: str
) -> None:
    fields = described or (zlib.crc32(HANDLER), len(packed), len(HANDLER))
    with pytest.raises(HostileArchiveError, match=reason):
        Archive.open(by_hand(tmp_path / "a.mar", packed, b"PK\7\x08" + struct.pack("<3L", *fields)))


def test_a_folder_entry_other_fields_and_further_keys_are_no_obstacle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("MAR-INF/")
        info = zipfile.ZipInfo("MAR-INF/MANIFEST.json")
        # A time stamp, as Info-ZIP writes it.
        info.extra = struct.pack("<2HBL", 0x5455, 5, 1, 0)
        archive.writestr(info, json.dumps({"model": {**MODEL, "extensions": None, "x": 1.50}, "runtime": "python"}))
        archive.writestr("h.py", HANDLER)
        archive.writestr("lables_\u00e9.txt", "x")
    selection = select(load_items(tmp_path, "all"))
    assert selection.left_out == ()
    assert parse_manifest(Archive.open(repack(tmp_path / "m.mar").path).text("MAR-INF/MANIFEST.json") or "").model_extra


BAD_VERSIONS = [
    "1.0 beta",
    "1/2",
    "1.0-rc/1",
    "1%2F2",
    "..",
    "1..0",
    " 1",
    "1\n",
    "1\u202e0",
    "1\u200b",
    "\u00e9",
    "-1",
]


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_a_version_that_nobody_could_name_is_refused_everywhere(tmp_path: Path, version: str) -> None:
    with pytest.raises(UsageError, match="is not a model version"):
        check_model_version(version)
    (tmp_path / "h.py").write_bytes(HANDLER)
    with pytest.raises(UsageError, match="is not a model version"):
        pack(PackRequest("m", version, f"{tmp_path}/h.py:handle", export_path=tmp_path))
    assert not (tmp_path / "m.mar").exists()
    store = tmp_path / "store"
    store.mkdir()
    old = streamed(store / "m.mar", {"model": {**MODEL, "modelVersion": version}})
    [left_out] = select(load_items(store, "all")).left_out
    assert "is not a model version" in left_out.reason
    assert not any(map(is_hidden, left_out.reason))
    with pytest.raises(UsageError, match="is not a model version"):
        repack(old)
    assert Archive.open(repack(old, version="1.1").path).manifest.model_version == "1.1"


@pytest.mark.parametrize("version", ["1.0 beta", "1%2F2", "..", "\u00e9", "1\u202e0", "a:b", "?x=1", "#"])
def test_a_version_that_a_server_has_can_be_named(version: str) -> None:
    assert split_model_reference(f"m:{version}") == ("m", version)


@pytest.mark.parametrize("version", ["1.0-rc/1", "/", "", "\ud800"])
def test_a_version_that_torchserve_cannot_be_asked_for_is_told_in_one_line(version: str) -> None:
    with pytest.raises(UsageError, match="TorchServe cannot be asked for the version") as error:
        check_named_version(version)
    assert "\n" not in error.value.message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_damaged_streamed_zip_is_refused_or_reads_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = streamed(tmp_path_factory.mktemp("noise") / "a.mar", {"model": MODEL})
    content = bytearray(path.read_bytes())
    content[at : at + len(noise)] = noise
    path.write_bytes(content)
    try:
        assert Archive.open(path).read("h.py")
    except MarsmithError:
        return


@pytest.mark.parametrize("config", ["", "# comments\n", "- a\n", "a text\n", "minWorkers: one\n", "yes: 1\n"])
def test_a_model_config_with_an_error_is_not_packed(tmp_path: Path, config: str) -> None:
    (tmp_path / "h.py").write_bytes(HANDLER)
    (tmp_path / "c.yaml").write_text(config)
    with pytest.raises(ConfigError, match=r"c\.yaml: line 1: "):
        pack(PackRequest("m", "1.0", f"{tmp_path}/h.py:handle", config_file=tmp_path / "c.yaml", export_path=tmp_path))
    assert not (tmp_path / "m.mar").exists()


@given(st.recursive(st.text(max_size=10), lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3)))
def test_json_that_is_printed_hides_nothing_and_means_the_same(value: Any) -> None:
    text = json_text(value, indent=2)
    assert not any(is_hidden(character) for character in text if character != "\n")
    assert json.loads(text) == value


@given(st.text(max_size=30))
def test_a_line_that_is_printed_hides_nothing(text: str) -> None:
    assert not any(is_hidden(character) for character in printable_lines(text) if character not in "\n\t")


@pytest.mark.parametrize("hidden", ["\u202e", "\u200b", "\u2066", "\ufeff", "\x1b[2J", "\U000e0001"])
def test_what_an_archive_is_called_steers_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hidden: str
) -> None:
    """Names of models, members and files in messages and tables."""
    name = f"a{hidden}b"
    member = tmp_path / "member.mar"
    with zipfile.ZipFile(member, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": MODEL, "runtime": "python"}))
        archive.writestr(name, HANDLER)
    model = streamed(
        tmp_path / f"{name}.mar", {"model": {**MODEL, "modelName": name, "modelVersion": name}, name: name}
    )
    for verb in ("inspect", "verify", "lint", "repack"):
        for path in (member, model):
            main([verb, str(path)])
    told = capsys.readouterr()
    assert "a" in told.err
    assert not any(is_hidden(character) for character in told.out + told.err if character not in "\n\t")


def test_workers_without_a_maximum_are_packed_with_a_warning_only(tmp_path: Path) -> None:
    """TorchServe then takes its default, as without both keys; the stock tool's users have such files."""
    (tmp_path / "h.py").write_bytes(HANDLER)
    (tmp_path / "c.yaml").write_text("minWorkers: 1\n")
    pack(PackRequest("m", "1.0", f"{tmp_path}/h.py:handle", config_file=tmp_path / "c.yaml", export_path=tmp_path))
    assert [stored.version for stored in select(load_items(tmp_path, "m.mar")).served] == [("m", "1.0")]
    (tmp_path / "c.yaml").write_text("minWorkers: 2\nmaxWorkers: 1\n")
    with pytest.raises(ConfigError, match="both are ignored"):
        pack(PackRequest("n", "1.0", f"{tmp_path}/h.py:handle", config_file=tmp_path / "c.yaml", export_path=tmp_path))
