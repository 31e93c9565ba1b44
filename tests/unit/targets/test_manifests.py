"""What `marsmith kubernetes` writes: the same each time, valid strictly, and with every typing error refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from marsmith.cli import main, verb_parser
from marsmith.config.project_settings import parse_settings
from marsmith.config.properties import as_mapping, parse_properties
from marsmith.project import PROJECT_VARIABLE
from marsmith.targets.folder import KUSTOMIZATION
from support.golden import golden_text
from support.projects import REPOSITORY

# Beside the repository, or beside a folder of work trees.
_NAME = Path("shared", "schemas", "kserve-inferenceservice-v1beta1.schema.json")
SCHEMAS = [parent / _NAME for parent in REPOSITORY.parents[:2]]
VERSIONS = [f"1.{minor}" for minor in range(31, int(kubernetes_validate.latest_version().split(".")[1]) + 1)]
OWN_KINDS = {"ServingRuntime", "InferenceService", "Kustomization"}
IMAGE = "registry.example.com/models:1.0"
SPEC = """\
name: {name}
version: "1.0"
export: {{recipe: export/m.py}}
handler: {{entry_point: handlers/h.py, settings: {{threads: 2}}}}
serving: {{minWorkers: 1, maxWorkers: 3, responseTimeout: 45, startupTimeout: 90}}
"""
LEVEL = "service_level: {p99_ms: 200, requests_per_second: 50}\n"
VARIANTS = {
    "cpu": ["light_one"],
    "gpu": ["light_one", "other", "--gpu", "--namespace", "vision", "--cpu", "3500m", "--memory", "6Gi"],
    "kserve": ["light_one", "--kserve", "--storage", "pvc://models/light"],
}
# Keys in which any name is right.
FREE = {"labels", "annotations", "matchLabels", "data", "requests", "limits", "selector"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "config" / "models").mkdir(parents=True)
    (root / "config.properties").write_text("# ours\njob_queue_size=7\nmodel_store=model_store\n")
    for name, level in (("light_one", LEVEL), ("other", LEVEL), ("without", "")):
        (root / "config" / "models" / f"{name}.yaml").write_text(SPEC.format(name=name) + level)
    monkeypatch.setenv(PROJECT_VARIABLE, str(root))
    return root


def write(folder: Path, arguments: list[str]) -> dict[str, str]:
    assert main(["kubernetes", *arguments, "--image", IMAGE, "--to", str(folder)]) == 0
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def objects(texts: dict[str, str]) -> dict[str, Any]:
    loaded = {name: YAML(typ="safe", pure=True).load(text) for name, text in texts.items()}
    return {each["kind"]: each for each in loaded.values()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_files_are_the_same_each_time_and_as_they_were(project: Path, tmp_path: Path, variant: str) -> None:
    texts = write(tmp_path / "one", VARIANTS[variant])
    assert write(tmp_path / "one", VARIANTS[variant]) == texts == write(tmp_path / "two", VARIANTS[variant])
    assert sorted(objects(texts)["Kustomization"]["resources"]) == sorted(texts.keys() - {KUSTOMIZATION})
    golden_text(f"kubernetes/{variant}.yaml", "".join(f"--- # {name}\n{text}" for name, text in texts.items()))


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_object_strictly(project: Path, tmp_path: Path, version: str) -> None:
    for variant, arguments in VARIANTS.items():
        for kind, each in objects(write(tmp_path / variant, arguments)).items():
            if kind not in OWN_KINDS:
                kubernetes_validate.validate(each, version, strict=True)


def pod_of(runtime: dict[str, Any], service: dict[str, Any]) -> dict[str, Any]:
    """Return the pod that KServe makes of a runtime and an inference service."""
    predictor = service["spec"]["predictor"]
    own = ("terminationGracePeriodSeconds", "securityContext", "automountServiceAccountToken")
    spec = {key: runtime["spec"][key] for key in ("containers", "volumes")} | {key: predictor[key] for key in own}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}


def pod_spec(found: dict[str, Any]) -> dict[str, Any]:
    if "Deployment" in found:
        spec: dict[str, Any] = found["Deployment"]["spec"]["template"]["spec"]
        return spec
    return dict(pod_of(found["ServingRuntime"], found["InferenceService"])["spec"])


def test_the_pod_of_the_runtime_is_valid_and_nothing_leads_to_the_wrapper_or_the_envelope(
    project: Path, tmp_path: Path
) -> None:
    texts = write(tmp_path / "out", VARIANTS["kserve"])
    found = objects(texts)
    kubernetes_validate.validate(pod_of(found["ServingRuntime"], found["InferenceService"]), VERSIONS[-1], strict=True)
    for word in ("server-type", "SERVICE_ENVELOPE", "service_envelope", "kserve_wrapper"):
        assert word not in "".join(texts.values())
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "light-one-predictor"


def kserve_validator() -> jsonschema.Draft202012Validator:
    found = next((path for path in SCHEMAS if path.exists()), None)
    if found is None:
        pytest.skip(f"no schema of KServe at {SCHEMAS[0]}")
    return jsonschema.Draft202012Validator(json.loads(found.read_text()))


@pytest.mark.parametrize("storage", ["pvc://models/a", "s3://bucket/a", "oci://registry.example.com/a:1"])
def test_the_inference_service_follows_the_schema_of_kserve(project: Path, tmp_path: Path, storage: str) -> None:
    validator = kserve_validator()
    found = objects(write(tmp_path / "out", ["light_one", "--kserve", "--storage", storage]))["InferenceService"]
    validator.validate(found)
    for path in keys(found["spec"], ("spec",)):
        assert not validator.is_valid(misspelt(found, path)), path


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each key that the format names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            if key not in FREE or "matchLabels" in inner:
                yield from keys(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from keys(inner, (*path, index))


def misspelt(found: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """Return a copy with one key misspelt: without its last letter but one."""
    changed = copy.deepcopy(found)
    parent: Any = changed
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1][:-2] + path[-1][-1]] = parent.pop(path[-1])
    return changed


def test_thirty_typing_errors_are_all_refused(project: Path, tmp_path: Path) -> None:
    found = objects(write(tmp_path / "out", VARIANTS["gpu"]))
    kinds = sorted(found.keys() - OWN_KINDS)
    # These two say which schema is asked.
    every = [(kind, path) for kind in kinds for path in keys(found[kind]) if path[0] not in {"apiVersion", "kind"}]
    chosen = [every[index * len(every) // 30] for index in range(30)]
    assert len(set(chosen)) == 30
    accepted = [each for each in chosen if is_valid(misspelt(found[each[0]], each[1]))]
    assert accepted == []


def is_valid(found: dict[str, Any]) -> bool:
    try:
        kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
    except kubernetes_validate.ValidationError:
        return False
    return True


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pod_is_restricted_and_ends_after_its_longest_answer(project: Path, tmp_path: Path, variant: str) -> None:
    spec = pod_spec(objects(write(tmp_path / "out", VARIANTS[variant])))
    (server,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] >= 45 + 30
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    written = {mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"/srv/models/.marsmith", "/tmp"}
    probes = {name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/live",
    }
    assert server["resources"]["requests"] == server["resources"]["limits"]
    assert server["resources"]["limits"].get("nvidia.com/gpu") == ("1" if variant == "gpu" else None)


def test_marsmith_understands_what_the_pod_runs_and_reads(project: Path, tmp_path: Path) -> None:
    found = objects(write(tmp_path / "out", VARIANTS["gpu"]))
    (server,) = pod_spec(found)["containers"]
    verb, *arguments = server["args"]
    # The start of TorchServe, and of both models one after the other.
    assert (verb, verb_parser("serve").parse_args(arguments).timeout) == ("serve", 60 + 2 * 90)
    program, verb, *arguments = server["lifecycle"]["preStop"]["exec"]["command"]
    stop = verb_parser(verb).parse_args(arguments)
    assert (program, stop.delay, stop.timeout) == ("marsmith", 5, 50)
    files = found["ConfigMap"]["data"]
    config = as_mapping(parse_properties(files["config.properties"]))
    assert config["inference_address"] == "http://0.0.0.0:8080"
    assert (config["job_queue_size"], config["load_models"]) == ("7", "light_one-1.0.mar,other-1.0.mar")
    settings = parse_settings(files["marsmith.yaml"], "marsmith.yaml")
    assert settings.listener == "0.0.0.0:8083"
    assert {port["containerPort"] for port in server["ports"]} == {8080, 8083}


def test_a_changed_setting_replaces_the_pods(project: Path, tmp_path: Path) -> None:
    before = objects(write(tmp_path / "out", ["other"]))["Deployment"]["spec"]["template"]
    (project / "config.properties").write_text("job_queue_size=8\n")
    assert objects(write(tmp_path / "out", ["other"]))["Deployment"]["spec"]["template"] != before


def test_there_is_another_pod_if_requests_wait_for_half_of_their_time(project: Path, tmp_path: Path) -> None:
    scaler = objects(write(tmp_path / "out", VARIANTS["gpu"]))["HorizontalPodAutoscaler"]["spec"]
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    found = {each["pods"]["metric"]["selector"]["matchLabels"]["model"]: each["pods"] for each in scaler["metrics"]}
    assert found.keys() == {"light_one", "other"}
    # 50 requests a second x 100 ms.
    assert {each["target"]["averageValue"] for each in found.values()} == {"5"}
    assert {each["metric"]["name"] for each in found.values()} == {"marsmith_queue_pending"}


RIGHT = {"model": "light_one", "--image": IMAGE}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "light_two"}, "no model 'light_two'"),
        ({"model": "without"}, "without has no service level"),
        ({"--image": "registry.example.com:5000/models"}, "neither a tag nor a digest"),
        ({"--image": "models@sha256:abc"}, "not the name of an image"),
        ({"--image": "Models:1"}, "not the name of an image"),
        ({"--namespace": "Vision_1"}, "'Vision_1' is not a namespace"),
        ({"--namespace": "a" * 64}, "is not a namespace"),
        ({"--name": "1st"}, "not a name for a service"),
        ({"--name": "a" * 41}, "not a name for a service"),
        ({"--memory": "4GB"}, "--memory '4GB' is not a quantity"),
        ({"--memory": "4"}, "--memory '4' is not a quantity"),
        ({"--cpu": "0"}, "--cpu '0' is not a quantity"),
        ({"--cpu": "2Gi"}, "--cpu '2Gi' is not a quantity"),
        ({"--storage": "s3://bucket"}, "--kserve and --storage go together"),
        ({"--kserve": None}, "--kserve and --storage go together"),
        ({"--kserve": None, "--storage": "ftp://a/b"}, "unknown scheme"),
        ({"--kserve": None, "--storage": "pvc://"}, "names no folder"),
    ],
)
def test_wrong_input_gets_one_line_and_nothing_is_written(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str | None],
    words: str,
) -> None:
    given = RIGHT | changed
    arguments = [str(given.pop("model")), "--to", str(tmp_path / "out")]
    for flag, value in given.items():
        arguments += [flag] if value is None else [flag, value]
    assert main(["kubernetes", *arguments]) == 2
    error, *tips = capsys.readouterr().err.splitlines()
    assert words in error
    assert [tip.partition(":")[0] for tip in tips] == ["TIP"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.properties", "disable_token_authorization=true\n", "tokens are off"),
        ("config.properties", "management_address=http://0.0.0.0:8081\n", "only the container itself may manage"),
        ("config.properties", "metrics_address=http://127.0.0.1:8083\n", "metrics_address has port 8083"),
        ("config/marsmith.yaml", "front: none\n", "which only the front takes"),
    ],
)
def test_settings_with_which_no_pod_would_start_are_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, words: str
) -> None:
    (project / file).write_text(text)
    assert main(["kubernetes", "other", "--image", IMAGE, "--to", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_manifests_of_another_kind_in_the_folder_are_not_left_beside_the_new_ones(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path / "out", VARIANTS["cpu"])
    assert main(["kubernetes", *VARIANTS["kserve"], "--image", IMAGE, "--to", str(tmp_path / "out")]) == 2
    assert "deployment.yaml" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == before
    shutil.rmtree(tmp_path / "out")
    assert "inference-service.yaml" in write(tmp_path / "out", VARIANTS["kserve"])
