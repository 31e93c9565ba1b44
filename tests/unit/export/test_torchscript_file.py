"""TorchScript files: two exports of one model become the same bytes, and still the same model."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from marsmith.errors import ExportError
from marsmith.export.formats.torchscript_file import normalise, sorted_constants
from support.projects import REPOSITORY

torch = pytest.importorskip("torch")

# argv: what file names begin with. Line numbers and names in the file show up in the debug records of the export.
EXPORT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 700)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean([2, 3])
        return self.head(x).softmax(1)

torch.manual_seed(0)
net = Net().eval()
for how in ("trace", "script", "frozen trace"):
    made = torch.jit.script(net) if "script" in how else torch.jit.trace(net, torch.zeros(2, 3, 16, 16))
    torch.jit.save(torch.jit.freeze(made) if "frozen" in how else made, f"{sys.argv[1]} {how}.pt")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model exported by two processes: other folders, scripts and hash seeds."""
    made = []
    for number, place in enumerate(("a/export.py", "b/deeper/other_script.py")):
        script = tmp_path_factory.mktemp("export") / place
        script.parent.mkdir(parents=True)
        script.write_text("\n" * number + EXPORT)
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 1)}
        subprocess.run(
            [sys.executable, script.name, str(script.parent / str(number))],
            cwd=script.parent,
            check=True,
            env=environment,
        )
        made.append(script.parent)
    return made[0], made[1]


@pytest.fixture(params=["trace", "script", "frozen trace"])
def exports(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> tuple[Path, Path]:
    """The model exported in one way by both, into files of other names."""
    return folders[0] / f"0 {request.param}.pt", folders[1] / f"1 {request.param}.pt"


def test_two_exports_of_one_model_become_the_same_bytes(exports: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = exports
    assert one.read_bytes() != other.read_bytes(), "torch is reproducible now: is this module still needed?"
    normalise(one, tmp_path / "one.pt")
    normalise(other, tmp_path / "other.pt")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()


def test_the_outputs_and_the_weights_are_equal_bit_by_bit(exports: tuple[Path, Path], tmp_path: Path) -> None:
    normalise(exports[0], tmp_path / "model.pt")
    before, after = torch.jit.load(str(exports[0])), torch.jit.load(str(tmp_path / "model.pt"))
    batch = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(before(batch), after(batch))
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())


def test_normalising_twice_changes_nothing_and_may_be_done_in_place(exports: tuple[Path, Path], tmp_path: Path) -> None:
    normalise(exports[0], tmp_path / "model.pt")
    once = (tmp_path / "model.pt").read_bytes()
    normalise(tmp_path / "model.pt", tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == once
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_records_stay_aligned_for_mapping_into_memory(exports: tuple[Path, Path], tmp_path: Path) -> None:
    normalise(exports[0], tmp_path / "model.pt")
    reader = torch._C.PyTorchFileReader(str(tmp_path / "model.pt"))
    assert {reader.get_record_offset(name) % 64 for name in reader.get_all_records()} == {0}


def test_no_path_of_this_machine_is_left(exports: tuple[Path, Path], tmp_path: Path) -> None:
    assert any(str(exports[0].parent).encode() in content for content in records(exports[0]).values())
    normalise(exports[0], tmp_path / "model.pt")
    found = records(tmp_path / "model.pt")
    for path in (str(exports[0].parent), str(REPOSITORY), "site-packages"):
        assert not any(path.encode() in content for content in found.values())
    assert {name.partition("/")[0] for name in found} == {"model"}


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_constants_are_sorted_and_nothing_else_moves() -> None:
    code = (
        "class A(Module):\n"
        "  b : Tensor\n"
        "  a : Tensor\n"
        "  z : Final[int] = 1\n"
        '  mode : Final[str] = "a\\nb"\n'
        "  pad : Final[Tuple[int, int]] = (0, 0)\n"
        "  def forward(self: A) -> Tensor:\n"
        "    return self.b\n"
    )
    lines = code.splitlines(keepends=True)
    assert sorted_constants(code) == "".join([*lines[:3], lines[4], lines[5], lines[3], *lines[6:]])
    several_lines = "  z : Final[List[int]] = [1,\n    2]\n  a : Final[int] = 1\n"
    assert sorted_constants(several_lines) == several_lines


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 and no zip", b"\x80\x02}q\x00."], ids=["empty", "cut off", "a pickle"]
)
def test_what_is_no_torchscript_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ExportError, match="not a TorchScript file"):
        normalise(tmp_path / "model.pt", tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_damaged_record_is_refused(exports: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(exports[0].read_bytes())
    pickled = next(content for name, content in records(exports[0]).items() if name.endswith("/data.pkl"))
    data[data.index(pickled) + len(pickled) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(data)
    with pytest.raises(ExportError):
        normalise(tmp_path / "damaged.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_state_dicts_and_missing_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(ExportError, match=r"no data\.pkl or no constants\.pkl"):
        normalise(tmp_path / "state.pt", tmp_path / "out.pt")
    with pytest.raises(ExportError, match="No such file"):
        normalise(tmp_path / "missing.pt", tmp_path / "out.pt")


def test_torch_is_not_needed() -> None:
    probe = "import sys, marsmith.export.formats.torchscript_file; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)
