"""What `marsmith monitor --write` writes: the same each time, accepted by its readers, and nothing of a team's lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from marsmith.cli import main
from marsmith.config.certificate import make_pair, write_pair
from marsmith.monitoring.containers import render_compose
from marsmith.monitoring.folder import OWN_FILES, render_folder
from marsmith.monitoring.objectives import Objective, Objectives
from marsmith.monitoring.prometheus import ALERTMANAGER
from marsmith.monitoring.targets import Target, Targets
from marsmith.project import PROJECT_VARIABLE, Project
from support.debian import needs
from support.golden import golden_text

SPEC = """\
name: {name}
version: "1.0"
export: {{recipe: export/m.py}}
handler: {{entry_point: handlers/h.py}}
"""
LEVEL = "service_level: {p99_ms: 80, requests_per_second: 5, availability: 0.99}\n"
SETTINGS = "front: envoy\nfront_metrics_port: 9901\nlistener: 0.0.0.0:8083\n"
PROPERTIES = "metrics_mode=prometheus\nmetrics_address=http://127.0.0.1:8082\n"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a model that has a service level, and one that has none."""
    root = tmp_path / "project"
    (root / "config" / "models").mkdir(parents=True)
    (root / "config" / "marsmith.yaml").write_text(SETTINGS)
    (root / "config.properties").write_text(PROPERTIES)
    (root / "config" / "models" / "with.yaml").write_text(SPEC.format(name="with") + LEVEL)
    (root / "config" / "models" / "without.yaml").write_text(SPEC.format(name="without"))
    monkeypatch.setenv(PROJECT_VARIABLE, str(root))
    return Project(root)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def test_the_same_project_gives_the_same_files_and_both_models_are_named(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [main(["monitor", "--write", str(tmp_path / name)]) for name in ("one", "two")] == [0, 0]
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    assert len(one) == 9
    rules = one["rules/marsmith.rules.yml"]
    assert "vector(0.01)" in rules
    assert 'model="with", le="0.1"' in rules
    assert "without" not in rules
    told = capsys.readouterr().err
    assert "no alerts on budgets for without: no service level" in told
    assert "TIP: write service_level into config/models/without.yaml" in told


def test_prometheus_reads_each_listener_where_it_is(small: Project, tmp_path: Path) -> None:
    assert main(["monitor", "--write", str(tmp_path / "out")]) == 0
    found = yaml(tmp_path / "out" / "prometheus.yml")["scrape_configs"]
    assert {job["job_name"]: job["static_configs"][0]["targets"] for job in found} == {
        "marsmith": ["127.0.0.1:8083"],
        "torchserve": ["127.0.0.1:8082"],
        "envoy": ["127.0.0.1:9901"],
    }


def test_the_examples_are_the_teams_once_they_are_there(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["monitor", "--write", str(out)]) == 0
    for name in (*OWN_FILES, "prometheus.yml"):
        (out / name).write_text("# mine\n")
    (out / "rules" / "ours.yml").write_text("groups: []\n")
    capsys.readouterr()
    assert main(["monitor", "--write", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["kept"]) == OWN_FILES
    assert (result["with_service_level"], result["without_service_level"]) == (["with"], ["without"])
    now = files(out)
    assert {name for name, text in now.items() if text == "# mine\n"} == OWN_FILES
    assert now["rules/ours.yml"] == "groups: []\n"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config/marsmith.yaml", "listener: none\n", "cannot know where the supervisor listens: listener is none"),
        ("config/marsmith.yaml", "listener: 127.0.0.1:0\n", "listener has another port with each start"),
        ("config/models/with.yaml", SPEC.format(name="other"), "name is 'other'"),
        ("config/models/with.yaml", SPEC.format(name="with") + LEVEL.replace("0.99", "0.9"), "availability"),
    ],
)
def test_a_project_that_cannot_be_monitored_writes_nothing(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, message: str
) -> None:
    (small.root / file).write_text(text)
    assert main(["monitor", "--write", str(tmp_path / "out")]) in {1, 2}
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["monitor", "--write", str(tmp_path / "file")]) == 2
    assert "cannot write" in (told := capsys.readouterr().err)
    assert "Traceback" not in told


def test_what_is_left_out_is_said(small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.settings_file.write_text("front: envoy\n")
    small.server_config.write_text("metrics_mode=log\n")
    assert main(["monitor", "--write", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "write metrics_mode=prometheus into config.properties" in told
    assert "write front_metrics_port: 9901 into config/marsmith.yaml" in told
    assert [job["job_name"] for job in yaml(tmp_path / "out" / "prometheus.yml")["scrape_configs"]] == ["marsmith"]


@needs("promtool")
def test_a_metrics_api_with_tls_is_read_with_its_own_certificate(small: Project, tmp_path: Path) -> None:
    key, certificate = write_pair(tmp_path / "tls", make_pair())
    tls = f"metrics_address=https://127.0.0.1:8445\nprivate_key_file={key}\ncertificate_file={certificate}\n"
    small.server_config.write_text(f"metrics_mode=prometheus\n{tls}")
    out = tmp_path / "out"
    assert main(["monitor", "--write", str(out)]) == 0
    job = next(job for job in yaml(out / "prometheus.yml")["scrape_configs"] if job["job_name"] == "torchserve")
    assert (job["scheme"], job["tls_config"]) == ("https", {"ca_file": str(certificate)})
    assert f"{certificate}:{certificate}:ro" in yaml(out / "compose.yaml")["services"]["prometheus"]["volumes"]
    done = subprocess.run(["promtool", "check", "config", out / "prometheus.yml"], capture_output=True, check=False)
    assert done.returncode == 0, done


SECURE = Targets((Target("marsmith", "http://[::1]:8083"), Target("torchserve", "https://h:8445", Path("/etc/ca.pem"))))


@pytest.mark.parametrize("name", ["prometheus.yml", "alertmanager.yml", "compose.yaml"])
def test_a_rendered_file_is_as_it_was(name: str) -> None:
    golden_text(f"monitoring/{name}", render_folder(SECURE, Objectives((Objective("m", 0.001, 0.05, 50),)))[name])


@needs("promtool", "amtool")
def test_prometheus_and_alertmanager_accept_their_configuration(small: Project, tmp_path: Path) -> None:
    assert main(["monitor", "--write", str(tmp_path)]) == 0
    for command in (["promtool", "check", "config", "prometheus.yml"], ["amtool", "check-config", "alertmanager.yml"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_its_data_source_and_its_boards_in_the_containers(small: Project, tmp_path: Path) -> None:
    assert main(["monitor", "--write", str(tmp_path)]) == 0
    compose = yaml(tmp_path / "compose.yaml")["services"]
    mounted = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    boards = yaml(tmp_path / "grafana/provisioning/dashboards/marsmith.yml")["providers"][0]["options"]["path"]
    folder = next(source for source, target in mounted.items() if target == boards)
    assert {path.stem for path in (tmp_path / folder).glob("*.json")} == {"service", "rollout", "model"}
    source = yaml(tmp_path / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in compose["prometheus"]["command"]
    for service in compose.values():
        assert all((tmp_path / path).exists() for path in _mounted_files(service))


@pytest.mark.parametrize("path", ["/a b/c.pem", "/x: y/#z.pem", '/"quoted"/c.pem', "/$HOME/ü.pem"])
def test_a_certificate_may_have_any_path(path: str) -> None:
    compose = YAML(typ="safe").load(render_compose([Target("torchserve", "https://127.0.0.1:8082", Path(path))]))
    assert f"{path}:{path}:ro".replace("$", "$$") in compose["services"]["prometheus"]["volumes"]


def _mounted_files(service: dict[str, Any]) -> list[str]:
    return [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]


@needs("amtool")
@pytest.mark.parametrize(("severity", "receiver"), [("page", "pager"), ("ticket", "tickets"), ("info", "nobody")])
def test_each_severity_has_its_receiver(tmp_path: Path, severity: str, receiver: str) -> None:
    (tmp_path / "alertmanager.yml").write_text(ALERTMANAGER)
    command = ["amtool", "config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr
