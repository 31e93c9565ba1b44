"""Every rule of `marsmith lint`: a small file that triggers it, and one that does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.cli.lint import configure, run
from marsmith.config.edit import Edit, apply, edit_properties, edit_yaml
from marsmith.config.lint import RULES, LintResult, lint_paths, lint_project
from marsmith.config.lint.metrics import FRONTEND_METRICS, written_metrics
from marsmith.config.lint.model_config import check_model_config
from marsmith.config.lint.report import as_github, as_sarif, as_text
from marsmith.config.lint.run import fix
from marsmith.config.model_config import ModelConfig, render_model_config
from marsmith.config.model_spec import parse_model_spec
from marsmith.config.properties import as_mapping, parse_properties, render_properties
from marsmith.config.server_keys import KEY_TYPES, KNOWN_KEYS, is_true, number
from marsmith.config.source_names import WeightsFile, weights_file
from marsmith.errors import UsageError
from marsmith.project import Project
from support.projects import REPOSITORY

CORES = 4
SERVER = """\
allowed_urls=(?!)
enable_model_api=true
metrics_mode=prometheus
default_workers_per_model=1
model_store=store
"""
MODEL = (
    "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 8\nmaxBatchDelay: 1\nresponseTimeout: 30\nstartupTimeout: 120\n"
    "maxRetryTimeoutInSec: 30\n"
)
SPEC = """\
name: m
version: "1.0"
export: {recipe: export/m.py}
handler: {entry_point: handlers/m_handler.py}
examples:
  - input: photo.jpg
serving:
  minWorkers: 1
  maxWorkers: 1
  batchSize: 8
  maxBatchDelay: 1
  responseTimeout: 30
service_level: {p99_ms: 50, requests_per_second: 50}
"""
METRICS = """\
dimensions: [ModelName, Level, Hostname]
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: [Level, Hostname]}
model_metrics:
  counter:
    - {name: cats_total, unit: Count, dimensions: [ModelName]}
  gauge:
    - {name: HandlerTime, unit: ms, dimensions: [ModelName, Level]}
"""
HANDLER = "def handle(data, context):\n    return [b'' for row in data or []]\n"


def changed(text: str, **keys: str | None) -> str:
    """Return YAML or properties with keys set to other values, removed (None), or added at the end."""
    mark = "=" if "=" in text.splitlines()[0] else ": "
    for key, value in keys.items():
        line = "" if value is None else f"{key}{mark}{value}\n"
        escaped = line.replace("\\", r"\\")
        text, count = re.subn(rf"^{key}[=:].*\n", escaped, text, flags=re.MULTILINE)
        text += "" if count else line
    return text


def in_serving(**keys: str) -> str:
    text = SPEC
    for key, value in keys.items():
        text, count = re.subn(rf"^  {key}:.*$", f"  {key}: {value}", text, flags=re.MULTILINE)
        if not count:
            text = text.replace("serving:\n", f"serving:\n  {key}: {value}\n")
    return text


def write_archive(path: Path, model: Mapping[str, Any] | None = None, members: Mapping[str, str] | None = None) -> Path:
    """Write an archive without weights; ``members`` with a value of an empty text are written empty."""
    default = {"modelName": "m", "modelVersion": "1.0", "handler": "m_handler.py", "configFile": "model-config.yaml"}
    manifest = {"runtime": "python", "model": default | dict(model or {})}
    files = {"m_handler.py": HANDLER, "model-config.yaml": MODEL} | dict(members or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound project."""
    files = {
        "config.properties": SERVER,
        "model-config.yaml": MODEL,
        "config/models/m.yaml": SPEC,
        "config/metrics.yaml": METRICS,
        "export/m.py": "",
        "handlers/m_handler.py": HANDLER,
        "photo.jpg": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    write_archive(tmp_path / "store" / "m-1.0.mar")
    return tmp_path


def lint(folder: Path, name: str) -> list[LintResult]:
    return lint_paths([folder / name], folder, cores=CORES)


def rules(results: list[LintResult]) -> list[str]:
    return [item.finding.rule for item in results]


SERVER_CASES = {
    "MS101": [changed(SERVER, job_que_size="1"), changed(SERVER, Model_Store="x")],
    "MS102": [SERVER + "model_store=other\nmodel_store=store\n"],
    "MS103": [changed(SERVER, enable_model_api="true ")],
    "MS104": [changed(SERVER, debug="yes"), changed(SERVER, job_queue_size="1e3"), changed(SERVER, job_queue_size="")],
    "MS105": [changed(SERVER, job_queue_size="0"), changed(SERVER, grpc_inference_port="65535")],
    "MS106": [
        changed(SERVER, inference_address=address)
        for address in ("127.0.0.1:8080", "http://[::1]:8080", "http://127.0.0.1:8080/", "http://h:65535", "grpc://h:1")
    ],
    "MS107": [changed(SERVER, grpc_inference_port="8080"), changed(SERVER, grpc_inference_port="7071")],
    "MS108": ["a=\\u12\n"],
    "MS110": [changed(SERVER, management_address="http://0.0.0.0:8081"), changed(SERVER, grpc_management_address="::")],
    "MS111": [
        changed(SERVER, inference_address="http://0.0.0.0:8080"),
        changed(SERVER, metrics_address="http://h:8082"),
    ],
    "MS112": [changed(SERVER, disable_token_authorization="true")],
    "MS113": [changed(SERVER, management_address="http://127.0.0.1:8080")],
    "MS114": [changed(SERVER, allowed_urls=None), changed(SERVER, allowed_urls="https://mine/.*,HTTPS?://.*")],
    "MS115": [changed(SERVER, enable_envvars_config="true"), changed(SERVER, use_env_allowed_urls="true")],
    "MS116": [changed(SERVER, install_py_dep_per_model="true")],
    "MS117": [changed(SERVER, async_logging="true")],
    "MS118": [changed(SERVER, metrics_mode=None), changed(SERVER, metrics_mode="prometeus")],
    "MS119": [changed(SERVER, disable_token_authorization="true")],
    "MS120": [changed(SERVER, enable_model_api=None)],
    "MS121": [changed(SERVER, max_response_size="1000")],
    "MS123": [changed(SERVER, default_workers_per_model=None), changed(SERVER, default_workers_per_model="0")],
    "MS124": [changed(SERVER, model_snapshot="a.cfg", load_models="all")],
    "MS125": [
        changed(SERVER, metrics_config="gone.yaml"),
        changed(SERVER, vmargs="-Dlog4j.configurationFile=gone.xml"),
    ],
    "MS126": [changed(SERVER, keystore_pass="$$MARSMITH_TEST_IS_NOT_SET$$")],
    "MS127": [changed(SERVER, load_models="m-1.0.mar,gone.mar")],
    "MS128": [
        changed(SERVER, models=value)
        for value in ("{", "[]", '{"m": {"1.0": {"batchSze": 1}}}', '{"m": {"1.0": {"minWorkers": "2"}}}')
    ],
    "MS129": [changed(SERVER, inference_address="https://127.0.0.1:8443"), changed(SERVER, enable_grpc_ssl="true")],
    "MS130": [changed(SERVER, keystore="config/metrics.yaml")],
    "MS131": [changed(SERVER, cors_allowed_origin="*")],
    "MS132": [changed(SERVER, limit_max_image_pixels="false")],
    "MS133": [
        changed(SERVER, enable_model_api=None),
        changed(SERVER, enable_model_api="false", workflow_store="store"),
    ],
    "MS134": [changed(SERVER, enable_grpc_ssl="true"), changed(SERVER, inference_address="https://127.0.0.1:8080")],
    "MS135": [changed(SERVER, enable_grpc_ssl="true", keystore="config/metrics.yaml")],
    "MS136": [
        changed(
            SERVER, enable_grpc_ssl="true", private_key_file="model-config.yaml", certificate_file="config/metrics.yaml"
        )
    ],
}
MODEL_CASES = {
    "MS201": [changed(MODEL, batch_size="4"), changed(MODEL, maxworkers="4"), changed(MODEL, maxRetryTimeout="4")],
    "MS202": [changed(MODEL, colour="red")],
    "MS203": [changed(MODEL, batchSize='"8"'), changed(MODEL, useVenv='"yes"'), changed(MODEL, maxBatchDelay="1.5")],
    "MS204": [changed(MODEL, responseTimeout="0"), changed(MODEL, deviceType="tpu"), changed(MODEL, jobQueueSize="-1")],
    "MS205": ["", "# nothing\n", "- 1\n", "text\n", "yes: 1\n", "a: [", "a: " + "[" * 300],
    "MS206": [changed(MODEL, responseTimeout=None), changed(MODEL, startupTimeout=None)],
    "MS207": [changed(MODEL, maxBatchDelay="0"), changed(MODEL, maxBatchDelay=None)],
    "MS208": [changed(MODEL, batchSize="1", maxBatchDelay="50")],
    "MS209": [changed(MODEL, minWorkers="2"), changed(MODEL, maxWorkers=None)],
    "MS210": [changed(MODEL, minWorkers=None, maxWorkers=None)],
    "MS211": [changed(MODEL, maxWorkers="5"), changed(MODEL, maxWorkers="2", handler="{threads: 3}")],
    "MS212": [changed(MODEL, maxRetryTimeoutInSec=None)],
    "MS213": [changed(MODEL, deviceIds="[0, -1]"), changed(MODEL, deviceIds="[0]", deviceType="cpu")],
    "MS214": [changed(MODEL, parallelType="pp"), changed(MODEL, parallelLevel="2")],
    "MS215": [changed(MODEL, maxBatchDelay="30000")],
    "MS216": [changed(MODEL, maxBatchDelay="100")],
    "MS218": [f"{MODEL}batchSize: 2\nbatchSize: 4\n"],
    "MS217": [changed(MODEL, maxNumSequence="4")],
}
SPEC_CASES = {
    "MS301": [in_serving(batchsize="4"), SPEC.replace("name: m\n", ""), "a: ["],
    "MS302": [in_serving(maxBatchDelay="11")],
    "MS303": [in_serving(jobQueueSize="2"), SPEC.replace("requests_per_second: 50", "requests_per_second: 5000")],
    "MS304": [in_serving(jobQueueSize="1501")],
    "MS305": [SPEC.replace("name: m\n", "name: n\n")],
    "MS306": [SPEC.replace("export/m.py", "export/gone.py"), SPEC.replace("photo.jpg", "gone.jpg")],
    "MS307": [SPEC.replace("examples:\n  - input: photo.jpg\n", "")],
    "MS308": [SPEC.replace("p99_ms: 50,", "p99_ms: 50000,")],
    "MS309": [SPEC.replace('"1.0"', "1.10")],
    "MS216": [in_serving(maxBatchDelay="20")],
    "MS601": [SPEC.replace('"1.0"', "token2")],
    "MS602": [SPEC.replace('"1.0"', "all")],
}
METRICS_CASES = {
    "MS401": [
        METRICS.replace("gauge", "gauges"),
        METRICS.replace("ts_metrics", "ts_metric"),
        "ts_metrics: {}\n",
        "model_metrics: [\n",
    ],
    "MS402": [
        METRICS.replace("unit: ms, ", ""),
        METRICS.replace("name: cats_total", "name: 3"),
        METRICS.replace("[ModelName]", "ModelName"),
        METRICS.replace("unit: ms", "units: ms"),
    ],
    "MS405": [METRICS.replace("HandlerTime", "cats_total")],
    "MS406": [METRICS.replace("[Level, Hostname]}", "[Level]}")],
    "MS407": [METRICS.replace("cats_total", "cats-total")],
}
SETTINGS_CASES = {
    "MS701": ["archive: ours\n", "signatures: yes please\n", "signatures: required\n", "archives: [", "- any\n"],
    "MS702": ["archives: any\ntrusted_keys:\n- keys/gone.pem\n", "trusted_keys: [photo.jpg]\n"],
}
HANDLER_CASES = {
    "MS403": [
        "context.metrics.add_counter('dogs_total', 1)\n",
        "N = 'dogs'\nNAMES = (N,)\nmetric.add_or_update(1, [])\n",
    ],
    "MS404": ["context.metrics.add_time('cats_total', 1)\n"],
}
ARCHIVE_CASES: dict[str, list[tuple[dict[str, Any], dict[str, str]]]] = {
    "MS501": [({"serializedFile": "gone.pt"}, {}), ({"modelName": ""}, {})],
    "MS502": [({"configFile": ""}, {})],
    "MS503": [({"requirementsFile": "requirements.txt"}, {"requirements.txt": "torch\n"})],
    "MS505": [({"handler": "image_classifier"}, {"index_to_name.json": '{"0": "cat", "1": "dog"}'})],
    "MS506": [({"handler": "object_detector"}, {})],
    "MS601": [({"modelName": "tokenizer"}, {}), ({"modelVersion": "token"}, {})],
    "MS602": [({"modelVersion": "all"}, {})],
    "MS603": [({"modelName": "a b"}, {})],
    "MS604": [({"modelVersion": version}, {}) for version in ("1.0 beta", "1/2", "1%2F2", "1..0", "1\u202e0", "é")],
    "MS507": [({"modelVersion": 1.0}, {})],
    "MS205": [({}, {"model-config.yaml": ""})],
    "MS207": [({}, {"model-config.yaml": changed(MODEL, maxBatchDelay="0")})],
}
STORE_RULES = {"MS504"}

TEXT_CASES = [
    *((rule, "config.properties", text) for rule, texts in SERVER_CASES.items() for text in texts),
    *((rule, "model-config.yaml", text) for rule, texts in MODEL_CASES.items() for text in texts),
    *((rule, "config/models/m.yaml", text) for rule, texts in SPEC_CASES.items() for text in texts),
    *((rule, "config/metrics.yaml", text) for rule, texts in METRICS_CASES.items() for text in texts),
    *((rule, "config/marsmith.yaml", text) for rule, texts in SETTINGS_CASES.items() for text in texts),
]


def test_a_sound_project_has_no_finding(folder: Path) -> None:
    assert lint_project(Project(folder), cores=CORES) == []
    assert lint(folder, "model-config.yaml") == []
    assert lint(folder, "store/m-1.0.mar") == []


def test_this_repository_has_no_finding() -> None:
    assert lint_project(Project(REPOSITORY)) == []


@pytest.mark.parametrize(("rule", "name", "text"), TEXT_CASES)
def test_a_rule_finds_its_trap_with_a_line_and_a_fix(folder: Path, rule: str, name: str, text: str) -> None:
    (folder / name).write_text(text)
    [first, *_] = [item.finding for item in lint(folder, name) if item.finding.rule == rule]
    assert 1 <= first.line <= max(1, text.count("\n"))
    assert first.file == folder / name
    assert first.fix
    assert first.message


@pytest.mark.parametrize(
    ("rule", "model", "members"), [(r, *case) for r, cases in ARCHIVE_CASES.items() for case in cases]
)
def test_a_rule_finds_its_trap_in_an_archive(
    folder: Path, rule: str, model: dict[str, Any], members: dict[str, str]
) -> None:
    write_archive(folder / "store" / "m-1.0.mar", model, members)
    assert rule in rules(lint(folder, "store/m-1.0.mar"))


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in HANDLER_CASES.items() for text in texts])
def test_a_metric_of_a_handler_is_compared_with_the_declared_ones(folder: Path, rule: str, text: str) -> None:
    (folder / "handlers" / "m_handler.py").write_text(text)
    assert rules(lint(folder, "config/metrics.yaml")) == [rule]


def test_two_archives_of_one_version_are_found_together(folder: Path) -> None:
    (folder / "config.properties").write_text(changed(SERVER, load_models="all"))
    assert lint(folder, "config.properties") == []
    write_archive(folder / "store" / "again.mar")
    [twins] = lint(folder, "config.properties")
    assert twins.finding.rule == "MS504"
    assert "again.mar and m-1.0.mar in the store are both m:1.0" in twins.finding.message


def test_every_rule_has_a_case_here_and_a_line_in_the_docs() -> None:
    cases: list[Mapping[str, object]] = [
        SERVER_CASES,
        MODEL_CASES,
        SPEC_CASES,
        METRICS_CASES,
        SETTINGS_CASES,
        HANDLER_CASES,
        ARCHIVE_CASES,
    ]
    assert STORE_RULES | {rule for each in cases for rule in each} == RULES.keys()
    docs = (REPOSITORY / "docs" / "reference" / "lint-and-config.md").read_text()
    assert [rule for rule in RULES if f"| {rule} |" not in docs] == []


def test_a_key_that_belongs_to_the_handler_is_no_typo(folder: Path) -> None:
    (folder / "model-config.yaml").write_text(MODEL + "handler: {top_k: 5}\npt2: {compile: {enable: true}}\n")
    assert lint(folder, "model-config.yaml") == []


def test_every_known_key_has_a_type() -> None:
    assert KEY_TYPES.keys() == KNOWN_KEYS


@pytest.mark.parametrize(
    ("text", "value"), [("8", 8), ("-8", -8), ("+8", 8), ("8 ", None), ("", None), ("1_0", None), ("2147483648", None)]
)
def test_numbers_are_read_as_java_reads_them(text: str, value: int | None) -> None:
    assert number(text) == value


def test_truth_values_are_read_as_java_reads_them() -> None:
    assert [is_true(text) for text in ("true", "TRUE", "true ", "1", "yes", "")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_what_the_frontend_writes_is_declared_as_torchserve_ships_it(tmp_path: Path) -> None:
    shipped = pytest.importorskip("ts").__path__[0]
    text = Path(shipped, "configs", "metrics.yaml").read_text()
    path = tmp_path / "metrics.yaml"
    path.write_text(text)
    assert rules(lint_paths([path], tmp_path)) == []
    assert [name for name in FRONTEND_METRICS if f"name: {name}\n" not in text] == []


def test_the_metrics_of_our_handlers_are_read_from_their_text() -> None:
    file = REPOSITORY / "handlers" / "marsmith_handler" / "metrics.py"
    names = {metric.name for metric in written_metrics(file, file.read_text())}
    assert "marsmith_decode_seconds" in names
    assert written_metrics(file, "def (") == []


FIXES: list[tuple[str, str, Callable[[str], bool]]] = [
    ("config.properties", changed(SERVER, job_que_size="7"), lambda text: "job_queue_size=7\n" in text),
    ("config.properties", changed(SERVER, prefer_direct_buffer="yes"), lambda text: "buffer=true\n" in text),
    ("config.properties", changed(SERVER, prefer_direct_buffer="true "), lambda text: "buffer=true\n" in text),
    ("config.properties", changed(SERVER, install_py_dep_per_model="no"), lambda text: "model=false\n" in text),
    ("config.properties", changed(SERVER, allowed_urls=None), lambda text: "allowed_urls=(?!)\n" in text),
    ("config.properties", SERVER + "model_store=store\n", lambda text: text.count("model_store") == 1),
    ("model-config.yaml", changed(MODEL, batchSize='"8"'), lambda text: "batchSize: 8\n" in text),
    ("model-config.yaml", changed(MODEL, responseTimeout=None), lambda text: "responseTimeout: 120\n" in text),
    ("model-config.yaml", changed(MODEL, maxBatchDelay="0"), lambda text: "maxBatchDelay: 1\n" in text),
    ("config/models/m.yaml", SPEC.replace('"1.0"', "1.10"), lambda text: 'version: "1.10"\n' in text),
    ("config/models/m.yaml", SPEC.replace("batchSize", "batchsize"), lambda text: "  batchSize: 8\n" in text),
    ("config/metrics.yaml", METRICS.replace("gauge", "gauges"), lambda text: "  gauge:\n" in text),
]


@pytest.mark.parametrize(("name", "text", "fixed"), FIXES)
def test_a_fix_leaves_a_sound_file_and_every_other_line_as_it_was(
    folder: Path, name: str, text: str, fixed: Callable[[str], bool]
) -> None:
    text = f"# why this file is here\n{text}"
    (folder / name).write_text(text)
    before = lint(folder, name)
    assert before
    assert fix(before) >= 1
    after = (folder / name).read_text()
    assert fixed(after)
    assert lint(folder, name) == []
    assert len(set(text.splitlines()) - set(after.splitlines())) <= 1
    assert sorted(path.name for path in (folder / name).parent.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    "line",
    ["inference_addres=http://0.0.0.0:80", "install_py_dep_per_model=yes", "install_py_dep_per_model=true "],
)
def test_a_fix_opens_nothing_that_a_mistake_keeps_closed(folder: Path, line: str) -> None:
    (folder / "config.properties").write_text(f"{SERVER}{line}\n")
    results = lint(folder, "config.properties")
    assert len(results) == 1
    assert fix(results) == 0


def test_a_rename_keeps_the_comment_beside_the_key() -> None:
    text = "# top\nserving:\n  # above\n  batchsize: 8  # beside\n  minWorkers: 1\nlist:\n- a\n- b\n"
    fixed = edit_yaml(text, [Edit("rename", ("serving", "batchsize"), "batchSize")])
    assert fixed == text.replace("batchsize", "batchSize")


def test_a_key_that_is_added_stands_with_its_block_and_not_behind_the_empty_line() -> None:
    text = "handler:\n  settings:\n    top_k: 5\n\n# What it must answer.\nexamples:\n  - a: 1  # one\n"
    fixed = edit_yaml(
        text, [Edit("set", ("handler", "settings", "threads"), 1), Edit("set", ("examples", "0", "b"), 2)]
    )
    assert fixed == text.replace("top_k: 5\n", "top_k: 5\n    threads: 1\n") + "    b: 2\n"


def test_a_block_is_added_once_and_not_behind_the_empty_line(tmp_path: Path) -> None:
    text = "handler:\n  entry_point: a.py\n\n# What it must answer.\nexamples: []\n"
    file = tmp_path / "m.yaml"
    file.write_text(text)
    block = Edit("set", ("handler", "settings"), {"threads": 1, "top_k": 3})
    apply(file, [block, block])
    assert file.read_text() == text.replace("a.py\n", "a.py\n  settings:\n    threads: 1\n    top_k: 3\n")


def test_a_line_that_goes_on_below_is_replaced_whole() -> None:
    text = "# top\nallowed_urls=http://a,\\\n   http://b\n# end\nport=1\n"
    fixed = edit_properties(text, [Edit("set", ("allowed_urls",), "(?!)", 2), Edit("set", ("new",), "x y")])
    assert fixed == "# top\nallowed_urls=(?!)\n# end\nport=1\nnew=x y\n"
    assert as_mapping(parse_properties(fixed)) == {"allowed_urls": "(?!)", "port": "1", "new": "x y"}


KEYS = st.text("abc_. =:#!\\\u00e9", min_size=1, max_size=6)


@given(st.dictionaries(KEYS, st.text("ab =\\\u00fc", max_size=6), min_size=1, max_size=5), st.data())
def test_setting_one_key_leaves_the_others(values: dict[str, str], data: st.DataObject) -> None:
    text = "# reason\n".join(["", *(render_properties({key: value}) for key, value in values.items())])
    chosen = data.draw(st.sampled_from(parse_properties(text)))
    fixed = edit_properties(text, [Edit("set", (chosen.key,), "new", chosen.line)])
    assert as_mapping(parse_properties(fixed)) == values | {chosen.key: "new"}
    assert fixed.count("# reason") == text.count("# reason")


def two_findings(folder: Path) -> list[LintResult]:
    (folder / "config.properties").write_text(changed(SERVER, job_que_size="1", metrics_mode="log"))
    return lint(folder, "config.properties")


def test_text_names_place_reason_and_fix(folder: Path) -> None:
    assert as_text(two_findings(folder), folder) == (REPOSITORY / "tests" / "golden" / "lint.txt").read_text()


def test_github_annotations_escape_what_would_end_them(folder: Path) -> None:
    golden = REPOSITORY / "tests" / "golden" / "lint-github.txt"
    assert as_github(two_findings(folder), folder) == golden.read_text()


def test_sarif_has_what_its_schema_requires(folder: Path) -> None:
    log = json.loads(as_sarif(two_findings(folder), folder))
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    [one] = log["runs"]
    driver = one["tool"]["driver"]
    assert driver["name"] == "marsmith"
    assert [rule["id"] for rule in driver["rules"]] == sorted(RULES)
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in {"none", "note", "warning", "error"}
    for result in one["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert result["message"]["text"]
        [location] = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "config.properties"
        assert location["physicalLocation"]["region"]["startLine"] >= 1


def command(*words: str) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    configure(parser)
    return run(parser.parse_args(words))


def test_the_exit_code_is_1_for_an_error_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert command() == 0
    assert capsys.readouterr().out == "nothing found\n"
    (folder / "config.properties").write_text(changed(SERVER, metrics_mode="log"))
    assert command("--json") == 0
    assert [item["rule"] for item in json.loads(capsys.readouterr().out)["findings"]] == ["MS118"]
    (folder / "config.properties").write_text(changed(SERVER, job_que_size="1 ", metrics_mode="log"))
    assert command("config.properties") == 1
    assert command("--fix", "config.properties") == 0
    assert (folder / "config.properties").read_text() == changed(SERVER, metrics_mode="prometheus", job_queue_size="1")


def test_what_there_are_no_rules_for_is_refused(folder: Path) -> None:
    for name in ("photo.jpg", "gone.yaml"):
        with pytest.raises(UsageError, match=name):
            lint(folder, name)


def test_of_a_folder_everything_known_in_it_is_checked(folder: Path) -> None:
    (folder / "store" / "broken.mar").write_text("x")
    assert rules(lint(folder, "store")) == ["MS501"]
    assert rules(lint_paths([folder], folder, cores=CORES)) == ["MS501"]


# Of TorchServe's own example of micro-batching; its handler reads `micro_batching` from the model config.
MICRO_BATCHING = """\
micro_batching:
  micro_batch_size: 4
  parallelism: {preprocess: 2, inference: 1, postprocess: 2}
"""


@pytest.mark.parametrize(
    "block",
    [
        MICRO_BATCHING,
        "batch_size: {small: 1}\n",
        "maxWorker: {count: 2}\n",
        "torch_run: {nproc-per-node: 2}\n",
        "torchvision: {size: 224}\n",
        "handlers: {top_k: 5}\n",
        "continuous_batching: {}\n",
    ],
)
def test_a_block_of_the_handlers_own_is_left_alone_whatever_it_is_called(folder: Path, block: str) -> None:
    file = folder / "model-config.yaml"
    file.write_text(MODEL + block)
    assert lint(folder, "model-config.yaml") == []
    assert fix(lint(folder, "model-config.yaml")) == 0
    assert file.read_text() == MODEL + block


@pytest.mark.parametrize(
    ("line", "rule", "fixed"),
    [
        ("batchsize: 4", "MS201", "batchSize: 4"),
        ("max_retry_timeout: 30", "MS201", "maxRetryTimeoutInSec: 30"),
        ("continuous_batching: true", "MS201", "continuousBatching: true"),
        ("device_ids: [0]", "MS201", "deviceIds: [0]"),
        ("deviceIds: 0", "MS203", "deviceIds:\n  - 0"),
        # A value that the near key could not have, or a key that is only a little like one: the handler's.
        ("continuous_batching: 4", "MS202", None),
        ("batchsize: many", "MS202", None),
        ("device: cpu", "MS202", None),
        ("parallelism: 2", "MS202", None),
        ("max_length: 50", "MS202", None),
    ],
)
def test_only_what_could_stand_there_is_renamed(folder: Path, line: str, rule: str, fixed: str | None) -> None:
    file = folder / "model-config.yaml"
    base = changed(MODEL, **{(fixed or "x").partition(":")[0]: None})
    file.write_text(base + line + "\n")
    found = [item for item in lint(folder, "model-config.yaml") if item.finding.rule == rule]
    assert len(found) == 1
    assert fix(found) == (1 if fixed else 0)
    after = file.read_text()
    assert (fixed or line) in after


def test_a_block_in_a_spec_is_refused_and_never_renamed_to_what_it_cannot_be(folder: Path) -> None:
    file = folder / "config" / "models" / "m.yaml"
    file.write_text(in_serving(micro_batching="{micro_batch_size: 4}"))
    [found] = lint(folder, "config/models/m.yaml")
    assert (found.finding.rule, found.edit) == ("MS301", None)
    file.write_text(in_serving(batchsize="4").replace("  batchSize: 8\n", ""))
    [found] = lint(folder, "config/models/m.yaml")
    assert fix([found]) == 1
    assert lint(folder, "config/models/m.yaml") == []


@pytest.mark.parametrize("ids", ["[0]", "[0, 1]", "[3]", "\n  - 0\n  - 1", "[]", "[010]"])
def test_numbers_of_gpus_are_right_in_a_config_a_spec_and_an_archive(folder: Path, ids: str) -> None:
    (folder / "model-config.yaml").write_text(MODEL + f"deviceIds: {ids}\n")
    assert lint(folder, "model-config.yaml") == []
    (folder / "config" / "models" / "m.yaml").write_text(in_serving(deviceIds=ids.replace("\n", "\n  ")))
    assert lint(folder, "config/models/m.yaml") == []
    write_archive(folder / "store" / "m-1.0.mar", None, {"model-config.yaml": MODEL + f"deviceIds: {ids}\n"})
    assert lint(folder, "store/m-1.0.mar") == []


def test_every_wrong_id_of_a_gpu_is_named(folder: Path) -> None:
    (folder / "model-config.yaml").write_text(MODEL + 'deviceIds: [0, -1, "1", true, 2.5]\n')
    [item] = lint(folder, "model-config.yaml")
    assert item.finding.rule == "MS213"
    assert "deviceIds has -1, '1', True, 2.5, " in item.finding.message


SOURCES = {
    "recipe: export/m.py": "export/m.py",
    "recipe: timm:resnet18.a1_in1k": None,
    "recipe: torchvision:resnet18": None,
    "recipe: torchvision:resnet18@IMAGENET1K_V1": None,
    "recipe: torchscript:old.pt": "old.pt",
    "recipe: export/m.py, weights: recipe": None,
    "recipe: export/m.py, weights: hub": None,
    "recipe: export/m.py, weights: random": None,
    "recipe: export/m.py, weights: 'models:/cats/3'": None,
    "recipe: export/m.py, weights: 'models:/cats@champion'": None,
    "recipe: export/m.py, weights: w/checkpoint.pth": "w/checkpoint.pth",
    "recipe: export/m.py, weights: 'w/checkpoint.pth#ema'": "w/checkpoint.pth",
    "recipe: export/m.py, weights: 'w/a#b.pth'": "w/a#b.pth",
    "recipe: export/m.py, weights: 'w/a#b.pth#ema'": "w/a#b.pth",
}


@pytest.mark.parametrize("source", SOURCES)
def test_of_a_recipe_and_its_weights_only_what_is_a_path_must_exist(folder: Path, source: str) -> None:
    file = SOURCES[source]
    (folder / "config" / "models" / "m.yaml").write_text(SPEC.replace("recipe: export/m.py", source))
    if file:
        (folder / file).unlink(missing_ok=True)
        [item] = lint(folder, "config/models/m.yaml")
        assert item.finding.rule == "MS306"
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("")
    assert lint(folder, "config/models/m.yaml") == []


def test_lint_and_export_read_a_source_of_weights_alike(tmp_path: Path) -> None:
    (tmp_path / "a#b").write_text("")
    assert weights_file("a#b", tmp_path) == WeightsFile(tmp_path / "a#b", None)
    assert weights_file("a#b#c", tmp_path) == WeightsFile(tmp_path / "a#b", "c")
    assert weights_file("gone#c", tmp_path) == WeightsFile(tmp_path / "gone", "c")
    assert weights_file("random", tmp_path) is None
    # Of the two, only this one may be asked without torch.
    probe = "import sys, marsmith.config.lint.spec; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_a_scheme_that_stands_for_nothing_is_told_with_the_ones_that_do(folder: Path) -> None:
    (folder / "config" / "models" / "m.yaml").write_text(SPEC.replace("export/m.py", "torchvison:resnet18"))
    [item] = lint(folder, "config/models/m.yaml")
    assert item.finding.rule == "MS301"
    assert "did you mean 'torchvision'" in item.finding.message


@pytest.mark.parametrize("key", ["entry_point: handlers", "entry_point: handlers/m_handler"])
def test_what_a_build_refuses_is_found_before(folder: Path, key: str) -> None:
    text = SPEC.replace("entry_point: handlers/m_handler.py", key)
    (folder / "config" / "models" / "m.yaml").write_text(text)
    assert rules(lint(folder, "config/models/m.yaml")) == ["MS306"]


def test_what_marsmith_writes_has_no_finding() -> None:
    specs = sorted((REPOSITORY / "config" / "models").glob("*.yaml"))
    configs = [parse_model_spec(spec.read_text(), str(spec)).serving for spec in specs]
    for config in [ModelConfig(), *configs]:
        assert check_model_config(Path("model-config.yaml"), render_model_config(config, {"top_k": 5}), 64) == []


def test_a_finding_in_an_archive_names_the_file_to_edit(folder: Path) -> None:
    config = {"model-config.yaml": changed(MODEL, maxRetryTimeoutInSec=None)}
    write_archive(folder / "store" / "m-1.0.mar", None, config)
    [packed] = lint(folder, "store/m-1.0.mar")
    write_archive(folder / "store" / "m-1.0.mar", None, {**config, "MAR-INF/export.json": "{}"})
    [built] = lint(folder, "store/m-1.0.mar")
    again = "and build the archive again"
    assert packed.finding.fix == f"write maxRetryTimeoutInSec: 30 in the model-config.yaml that was packed, {again}"
    spec = "the block serving of config/models/m.yaml"
    assert built.finding.fix == f"write maxRetryTimeoutInSec: 30 in {spec}, {again}"
