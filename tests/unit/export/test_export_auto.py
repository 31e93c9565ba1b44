"""Auto, the gate's verdicts, the lock, and what is reported about them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from marsmith.build import build_from_spec
from marsmith.cli import main
from marsmith.config import load_spec
from marsmith.config.export_spec import ExportSpec
from marsmith.config.form import BASE, Form
from marsmith.errors import ExportError, FormatError, UsageError
from marsmith.export import Export, export_model, locks
from marsmith.export import measure as export_choice
from marsmith.export.inputs import gather, overridden
from marsmith.export.job import open_job
from marsmith.export.lock import Candidate, parse_export_lock, render_export_lock
from marsmith.export.machine import Machine, obstacle, versions
from marsmith.export.measure import Progress
from marsmith.export.page import render_page
from marsmith.project import PROJECT_VARIABLE, Project
from support.export_fixtures import NETWORK, QUICK, lock_text, write_tiny
from support.long_tests import long
from support.projects import copy_project

ENGINES = "handlers/marsmith_handler/engines"
OPENVINO = "torchscript/float32/openvino"
OLD_MACHINE = Machine("Old CPU", "x86_64", 2, frozenset({"avx2"}), (), "3.11")
# Two candidates are enough for all that is told here, and each costs the start of a torch process.
AUTO = "engine: auto, gate: {must_be_faster: false}"


def _export(project: Project, **options: object) -> Export:
    return export_model(project, load_spec(project, "tiny"), effort=QUICK, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Export, list[str]]:
    """The tiny model, measured once. Read only."""
    project = write_tiny(copy_project(tmp_path_factory.mktemp("auto") / "project"), recipe=NETWORK, export=AUTO)
    steps: list[str] = []
    return project, _export(project, progress=Progress(step=steps.append)), steps


@pytest.fixture
def locked(measured: tuple[Project, Export, list[str]], tmp_path: Path) -> Project:
    """A clone of the measured project: its lock, and nothing that was built."""
    shutil.copytree(measured[0].root, tmp_path / "clone", ignore=shutil.ignore_patterns(".marsmith", "__pycache__"))
    return Project(tmp_path / "clone")


def _sums(export: Export) -> dict[str, str]:
    files = [export.serialized_file, *export.companions, export.report_file, export.labels_file]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_auto_is_resolved_once_and_written_down_for_people(measured: tuple[Project, Export, list[str]]) -> None:
    project, export, steps = measured
    lock = yaml.safe_load(lock_text(project))
    assert lock["chosen"] == str(export.form)
    assert {one["form"]: one["verdict"] for one in lock["candidates"]} == {str(BASE): "passed", OPENVINO: "passed"}
    chosen = next(one for one in lock["candidates"] if one["form"] == lock["chosen"])
    # Not of the speed-ups, which are rounded: they may lie on the other side of the limit.
    scores = [export_choice.score(one["images_per_second"], lock["batch_sizes"]) for one in lock["candidates"]]
    score = export_choice.score(chosen["images_per_second"], lock["batch_sizes"])
    assert score >= max(scores) * (1 - export_choice.CLOSE)
    assert chosen["speedup"] == pytest.approx(
        score / export_choice.score(lock["eager_images_per_second"], lock["batch_sizes"]), rel=1e-3
    )
    assert set(chosen["images_per_second"]) == {"1", "8"}
    assert chosen["figures"]["top1_agreement"] == 1.0
    assert [file["name"] for file in lock["images"]["validation"]] == ["chelsea.png"]
    assert lock["machine"]["cores"] >= 1
    assert lock["fits"]["packages"]["torch"]
    assert "marsmith export tiny --relock" in lock_text(project)
    assert any("wrote config/models/tiny.lock" in step for step in steps)


def test_a_clone_repeats_the_choice_and_gives_the_same_bytes_and_figures(
    measured: tuple[Project, Export, list[str]], locked: Project
) -> None:
    before = lock_text(locked)
    again = _export(locked, frozen=True)
    assert not again.reused
    assert _sums(again) == _sums(measured[1])
    assert lock_text(locked) == before
    assert again.measured is None
    lock = yaml.safe_load(before)
    assert again.report["speed"]["imagesPerSecond"]["eager"] == lock["eager_images_per_second"]
    assert _export(locked, frozen=True).reused


def test_an_archive_tells_the_handler_its_engine_and_its_examples_are_answered_by_it(locked: Project) -> None:
    _choose(locked, OPENVINO)
    built = build_from_spec(locked, load_spec(locked, "tiny"), frozen=True)
    with zipfile.ZipFile(built.path) as archive:
        config = yaml.safe_load(archive.read("model-config.yaml"))["handler"]
        report = json.loads(archive.read("MAR-INF/export.json"))
        environment = archive.read("MAR-INF/environment.txt").decode()
        examples = json.loads(archive.read("MAR-INF/examples/examples.json"))
    wanted = {"engine": "openvino", "precision": "float32", "engine_missing": "fallback"}
    assert {key: config[key] for key in wanted} == wanted
    assert "openvino==" in environment
    assert report["form"] == OPENVINO
    assert report["speed"]["imagesPerSecond"][OPENVINO].keys() == {"1", "8"}
    assert [example["tolerance"] for example in examples] == [1e-3]
    assert build_from_spec(locked, load_spec(locked, "tiny"), frozen=True).reused
    # Another lock is another export, and so another archive.
    path = locks.lock_path(locked, "tiny")
    path.write_text(path.read_text().replace("why: ", "why: still "))
    assert not _export(locked, frozen=True).reused


# What a processor cannot do is decided by `obstacle`, which has a test below.
@long("export")
def test_a_processor_without_bfloat16_builds_what_was_locked_in_openvino_and_says_what_it_computes_in(
    locked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    _choose(locked, "torchscript/bfloat16/openvino")
    monkeypatch.setattr(Machine, "here", lambda: OLD_MACHINE)
    steps: list[str] = []
    built = build_from_spec(locked, load_spec(locked, "tiny"), frozen=True, on_step=steps.append)
    with zipfile.ZipFile(built.path) as archive:
        config = yaml.safe_load(archive.read("model-config.yaml"))["handler"]
    assert (config["engine"], config["precision"]) == ("openvino", "bfloat16")
    (told,) = (step for step in steps if "computes in float32 here" in step)
    assert "Old CPU has no bfloat16" in told
    assert "marsmith export tiny --relock" in told


def test_a_locked_form_that_the_machine_cannot_run_is_refused_with_what_to_do(
    locked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    _choose(locked, "torchscript/bfloat16/torch")
    monkeypatch.setattr(Machine, "here", lambda: OLD_MACHINE)
    with pytest.raises(ExportError, match=r"bfloat16/torch is not possible here: .*only by emulation") as caught:
        _export(locked, frozen=True)
    assert caught.value.tip == "choose for this machine: marsmith export tiny --relock"


def _choose(project: Project, form: str) -> None:
    lock = parse_export_lock(lock_text(project), "tiny.lock")
    fits = lock.fits.model_copy(update={"packages": versions(Form.parse(form))})
    locks.write_lock(project, lock.model_copy(update={"chosen": form, "fits": fits}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: _replace(root / "export" / "tiny.py", "mul_(20)", "mul_(10)"), "the recipe changed"),
        (lambda root: _replace(root / "config/models/tiny.yaml", "must_be_faster: false", ""), "export block changed"),
        (lambda root: _replace(root / "config/models/tiny.yaml", "chelsea", "coffee"), "the images changed"),
        (lambda root: _replace(root / "config/models/tiny.lock", 'torch: "2.', 'torch: "1.'), "torch is 2"),
    ],
    ids=["recipe", "spec", "images", "versions"],
)
def test_a_lock_that_no_longer_fits_is_refused_with_the_reason_and_the_command(
    locked: Project, change: Callable[[Path], None], message: str
) -> None:
    change(locked.root)
    with pytest.raises(ExportError, match=f"no longer fits: .*{message}") as caught:
        _export(locked)
    assert caught.value.tip == "measure again: marsmith export tiny --relock"
    assert not (locked.root / ".marsmith").exists()


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_lock_is_refused_for_other_weights(locked: Project, tmp_path: Path) -> None:
    request = gather(locked, load_spec(locked, "tiny")).request(BASE, tmp_path, cores=1)
    other = {"source": "file", "file": "w.pth", "sha256": "0" * 64}
    with pytest.raises(ExportError, match=r"made for the weights source file, file w.pth.* these are source random"):
        open_job(replace(request, locked_weights=other), lambda _: None).run()


def test_a_damaged_lock_is_refused_and_not_repaired_in_silence(locked: Project) -> None:
    path = locks.lock_path(locked, "tiny")
    path.write_text(path.read_text().replace("chosen:", "chosn:"))
    with pytest.raises(FormatError, match="unknown key 'chosn'; did you mean 'chosen'") as caught:
        _export(locked)
    assert "--relock" in str(caught.value.tip)


def test_a_frozen_run_does_not_measure(locked: Project) -> None:
    locks.lock_path(locked, "tiny").unlink()
    with pytest.raises(ExportError, match="tiny has no lock, and a frozen run does not measure"):
        _export(locked, frozen=True)
    assert not (locked.root / ".marsmith").exists()


def test_a_candidate_that_fails_stands_in_the_table_and_relock_shows_what_changed(
    locked: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (locked.root / ENGINES / "openvino_engine.py").write_text("raise ValueError('broken engine')\n")
    monkeypatch.setenv(PROJECT_VARIABLE, str(locked.root))
    monkeypatch.setenv("CI", "true")
    page = locked.root / "page.html"
    assert main(["export", "tiny", "--relock", "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    assert f"{OPENVINO}: does not load: ValueError: broken engine" in printed
    assert "passed -> failed" in printed
    lock = yaml.safe_load(lock_text(locked))
    assert lock["chosen"] == str(BASE)
    assert next(one for one in lock["candidates"] if one["form"] == OPENVINO)["verdict"] == "failed"
    _check_page(page.read_text())


def test_an_override_leaves_the_lock_and_a_form_below_the_gate_is_refused(locked: Project) -> None:
    before = lock_text(locked)
    spec = locked.specs / "tiny.yaml"
    # No TorchScript is as near as this.
    spec.write_text(spec.read_text().replace("must_be_faster: false", "float32: {max_abs_error: 1.0e-12}"))
    with pytest.raises(
        ExportError, match=r"float32/torch does not answer .* largest absolute error is .*, above 1\.00e-12"
    ):
        _export(locked, overrides={"engine": "torch"})
    assert lock_text(locked) == before
    assert not list(locked.exports.rglob("*"))


def test_bfloat16_is_further_off_than_float32_and_judged_by_limits_of_its_own(
    measured: tuple[Project, Export, list[str]], tmp_path: Path
) -> None:
    project, export, _ = measured
    form = Form("torchscript", "bfloat16", "torch")
    inputs = gather(project, load_spec(project, "tiny"), overrides={"precision": "bfloat16", "engine": "torch"})
    result = open_job(replace(inputs.request(form, tmp_path, cores=1), thorough=True), lambda _: None).run()
    assert result.problems == []
    assert result.parity["max_abs_error"] > 1e-4 > export.report["parity"]["maxAbsError"]


def test_a_lock_of_a_form_that_the_spec_does_not_allow_is_refused(locked: Project) -> None:
    before = lock_text(locked)
    with pytest.raises(UsageError, match="the spec allows no such form"):
        _export(locked, overrides={"precision": "bfloat16"}, relock=True)
    assert lock_text(locked) == before


def test_overrides_take_the_engine_that_fits_and_name_the_forms_that_exist() -> None:
    export = ExportSpec(recipe="x.py", engine="torch")
    assert overridden(export, {"format": "onnx"}).forms() == (Form("onnx", "float32", "onnxruntime"),)
    with pytest.raises(UsageError, match="no form pt2/int8/aot_inductor on cpu; supported: torchscript/int8/torch"):
        overridden(export, {"format": "pt2", "precision": "int8"})
    with pytest.raises(UsageError, match="no form torchscript/float16/torch on cpu"):
        overridden(export, {"precision": "float16"})


def _candidate(form: str, one: float, eight: float, verdict: str = "passed") -> Candidate:
    return Candidate.model_validate(
        {"form": form, "verdict": verdict, "images_per_second": {"1": one, "8": eight}, "speedup": 1.0}
    )


def test_the_fastest_that_passes_is_taken_and_the_plainer_one_where_they_are_equal() -> None:
    base, other = _candidate(str(BASE), 50, 100), _candidate(OPENVINO, 100, 200)
    refused = _candidate("torchscript/int8/torch", 900, 900, "refused")
    assert export_choice.choose([base, other, refused], [1, 8]) == other
    assert export_choice.choose([base, _candidate(OPENVINO, 51, 101)], [1, 8]) == base
    assert export_choice.choose([refused], [1, 8]) is None
    # Twice as fast alone and half as fast in batches is no gain.
    assert export_choice.choose([base, _candidate(OPENVINO, 100, 50)], [1, 8]) == base


def test_a_form_slower_than_float32_is_refused_with_by_how_much() -> None:
    base, slow = _candidate(str(BASE), 100, 100), _candidate("torchscript/int8/torch", 7, 8)
    first, second = export_choice.refuse_slow([base, slow], [1, 8])
    assert first.verdict == "passed"
    assert second.verdict == "refused"
    assert "slower than torchscript/float32/torch on this machine: 7.5 instead of 100.0" in second.reason
    assert "93% less" in second.reason


@pytest.mark.parametrize(
    ("form", "device", "flags", "message"),
    [
        ("torchscript/bfloat16/torch", "cpu", {"avx2"}, "computes bfloat16 only by emulation"),
        ("torchscript/int8/torch", "cpu", {"avx2"}, "int8 overflows in torch on .* no VNNI: take onnxruntime"),
        ("torchscript/int8/openvino", "cpu", {"avx2", "avx512f"}, "int8 overflows in openvino"),
        ("torchscript/int8/openvino", "cpu", {"avx2", "avx512_vnni"}, "nothing against it"),
        ("torchscript/int8/onnxruntime", "cpu", {"avx2"}, "nothing against it"),
        ("torchscript/int8/torch", "cpu", {"sse4_2"}, "computes int8 only by emulation: it has no asimd or .*avx2"),
        ("torchscript/float16/torch", "cuda", {"avx2"}, "this machine has no GPU"),
        ("torchscript/bfloat16/torch", "cpu", {"avx512_bf16"}, "nothing against it"),
    ],
)
def test_what_a_machine_cannot_do_is_said(form: str, device: str, flags: set[str], message: str) -> None:
    machine = Machine("Old CPU", "x86_64", 2, frozenset(flags), (), "3.11")
    assert re.search(message, obstacle(Form.parse(form), device, machine) or "nothing against it")


def test_pt2_without_a_compiler_is_refused_and_leaves_nothing(
    locked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    form = Form("pt2", "float32", "aot_inductor")
    folder = tmp_path / "out"
    folder.mkdir()
    request = gather(locked, load_spec(locked, "tiny"), overrides={"format": "pt2"}).request(form, folder, cores=1)
    with pytest.raises(ExportError, match="no compiler for pt2: no-such-compiler"):
        open_job(request, lambda _: None).run()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("label", "known"), [("a", True), (2, True), ("zebra", False)])
def test_with_labels_the_accuracy_is_compared_too(
    locked: Project, tmp_path: Path, label: str | int, known: bool
) -> None:
    (locked.root / "labels.json").write_text(json.dumps({"chelsea.png": label}))
    request = gather(locked, load_spec(locked, "tiny")).request(BASE, tmp_path, cores=1)
    job = open_job(replace(request, labels=str(locked.root / "labels.json")), lambda _: None)
    if not known:
        with pytest.raises(ExportError, match="the model has no label 'zebra'"):
            job.run()
        return
    result = job.run()
    assert result.parity["accuracy"] == result.parity["eager_accuracy"]
    assert 0 <= result.parity["accuracy"] <= 1


def test_a_handler_without_engines_can_run_float32_torchscript_only(locked: Project, tmp_path: Path) -> None:
    (locked.root / ENGINES / "__init__.py").unlink()
    form = Form.parse(OPENVINO)
    request = gather(locked, load_spec(locked, "tiny")).request(form, tmp_path, cores=1)
    with pytest.raises(ExportError, match=r"no marsmith_handler\.engines beside the handler, so no worker could run"):
        open_job(request, lambda _: None).run()


def test_a_lock_reads_as_it_was_written(measured: tuple[Project, Export, list[str]]) -> None:
    lock = parse_export_lock(lock_text(measured[0]), "tiny.lock")
    assert render_export_lock(lock) == lock_text(measured[0])
    assert lock == measured[1].lock


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        own = ("#", "data:")
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith(own)]


def _check_page(text: str) -> None:
    page = _Loads()
    page.feed(text)
    assert page.loads == []
    assert "script" not in page.tags
    assert "@import" not in text
    assert page.tags.count("svg") == 2


def test_the_page_has_its_plots_inside_and_loads_nothing(measured: tuple[Project, Export, list[str]]) -> None:
    _, export, _ = measured
    assert export.lock is not None
    evil = export.lock.model_copy(update={"why": "<script>alert(1)</script>"})
    text = render_page(evil, export.report)
    _check_page(text)
    assert text == render_page(evil, export.report)


def test_the_command_prints_json_with_the_lock(
    measured: tuple[Project, Export, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, export, _ = measured
    monkeypatch.setenv(PROJECT_VARIABLE, str(project.root))
    assert main(["export", "tiny", "--json", "--frozen"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reused"] is True
    assert printed["form"] == printed["lock"]["chosen"] == str(export.form)
