"""The hardened profile against a real TorchServe: this repository's config.properties, and what strangers try on it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from marsmith.archive import Archive
from marsmith.client import Client
from marsmith.client.tokens import token as make_token
from marsmith.errors import ArchiveError, NotFoundError, UsageError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import launch
from support.live_server import make_project, running, tiny_archive
from support.raw_calls import INFERENCE, MANAGEMENT, Answer, call, grpc_code, open_request

ROLES = ("inference", "management", "API")
MAX_REQUEST = 16_777_216
HALF_OPEN = 200


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("security")
    archive = tiny_archive(root / "echo.mar")
    project = make_project(root / "project", {"echo.mar": archive})
    (project.root / "outside.mar").write_bytes(archive.read_bytes())
    return project


@pytest.fixture(scope="module")
def state(project: Project) -> Iterator[RunState]:
    with running(project) as state:
        # Registered without a worker, which would take seconds to start.
        tiny_archive(project.model_store / "idle.mar", name="idle", workers=0)
        yield state


def tokens(state: RunState) -> dict[str, str]:
    return {role: entry["key"] for role, entry in json.loads(state.key_file.read_text()).items()}


def managed(state: RunState, method: str, path: str) -> Answer:
    return call(state.management, method, path, tokens(state)["management"])


def registered(state: RunState) -> set[str]:
    return {model["modelName"] for model in json.loads(managed(state, "GET", "/models").body)["models"]}


def predicts(state: RunState) -> bool:
    return (
        call(state.inference, "POST", "/predictions/echo", tokens(state)["inference"], body=b"hello").body == b"hello"
    )


# Foreign archives


@pytest.mark.parametrize(
    "url",
    [
        "../outside.mar",
        "../../outside.mar",
        "%2e%2e%2foutside.mar",
        "{root}/outside.mar",
        "file://{root}/outside.mar",
        "file:{root}/outside.mar",
        "FILE://{root}/outside.mar",
        "s3://bucket/outside.mar",
        "jar:file:{root}!/outside.mar",
        "/etc/passwd",
    ],
)
def test_a_foreign_path_is_refused_over_rest_and_grpc(project: Project, state: RunState, url: str) -> None:
    foreign = url.replace("{root}", str(project.root))
    reply = managed(state, "POST", f"/models?url={quote(foreign, safe='')}&model_name=foreign")
    assert (reply.status, reply.kind) == (404, "ModelNotFoundException")
    key = tokens(state)["management"]
    fields = {5: "foreign", 9: foreign}
    assert grpc_code(state.grpc_management, MANAGEMENT, "RegisterModel", fields, key) == "NOT_FOUND"
    assert registered(state) == {"echo"}


def test_a_foreign_url_is_refused_and_never_called(project: Project, state: RunState) -> None:
    asked: list[str] = []

    class Attacker(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Attacker) as attacker:
        threading.Thread(target=attacker.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{attacker.server_port}/m.mar"
        assert managed(state, "POST", f"/models?url={url}").status == 404
        key = tokens(state)["management"]
        assert grpc_code(state.grpc_management, MANAGEMENT, "RegisterModel", {9: url}, key) == "NOT_FOUND"
        attacker.shutdown()
    assert asked == []
    assert not (project.model_store / "m.mar").exists()


def test_a_folder_of_this_machine_stays_open_to_who_has_the_management_token(tmp_path: Path, state: RunState) -> None:
    with zipfile.ZipFile(tiny_archive(tmp_path / "a.mar", name="folder", workers=0)) as archive:
        archive.extractall(tmp_path / "folder")
    assert managed(state, "POST", f"/models?url={tmp_path / 'folder'}&initial_workers=0").status == 200
    assert managed(state, "DELETE", "/models/folder").status == 200


# Tokens


@pytest.mark.parametrize("role", [None, *ROLES, "invented"])
def test_each_api_takes_the_token_of_its_own_role_only(state: RunState, role: str | None) -> None:
    token = {**tokens(state), "invented": "zQaFLQeQ"}[role] if role else None
    calls = {
        "inference": [("POST", "/predictions/echo"), ("GET", "/ping"), ("POST", "/v1/models/echo:predict")],
        "management": [("GET", "/models"), ("DELETE", "/models/none"), ("PUT", "/models/none"), ("GET", "/workflows")],
        "API": [("GET", "/token?type=none")],
    }
    for wanted, requests in calls.items():
        url = state.inference if wanted == "inference" else state.management
        for method, path in requests:
            reply = call(url, method, path, token, body=b"1" if method == "POST" else None)
            refused = reply.status == 400 and reply.kind == "InvalidKeyException"
            # The token API calls a wrong type a wrong token, whoever asks.
            assert refused == (role != wanted or wanted == "API"), f"{method} {path}: {reply.body!r}"


@pytest.mark.parametrize("role", [None, *ROLES, "invented"])
def test_each_api_over_grpc_takes_the_token_of_its_own_role_only(state: RunState, role: str | None) -> None:
    token = {**tokens(state), "invented": "zQaFLQeQ"}[role] if role else None
    inference = grpc_code(state.grpc_inference, INFERENCE, "Ping", {}, token)
    management = grpc_code(state.grpc_management, MANAGEMENT, "ListModels", {}, token)
    assert inference == ("OK" if role == "inference" else "PERMISSION_DENIED")
    assert management == ("OK" if role == "management" else "PERMISSION_DENIED")


def test_without_a_token_there_is_only_the_description_of_the_api_and_the_metrics(state: RunState) -> None:
    for url in (state.inference, state.management):
        described = call(url, "OPTIONS", "/")
        assert described.status == 200
        assert b"echo" not in described.body
    assert call(state.metrics, "GET", "/metrics").status == 200
    assert call(state.metrics, "GET", "/models").status == 404


def test_tokens_are_rotated_under_running_clients_and_none_of_their_requests_fails(
    project: Project, state: RunState
) -> None:
    old = tokens(state)
    answers: list[bytes] = []
    stop = threading.Event()

    def work() -> None:
        with Client.for_project(project) as client:
            while not stop.is_set():
                answers.append(client.predict("echo", b"x").body)
                client.models()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(3):
        for role in ("inference", "management"):
            seen = len(answers)
            assert make_token(state, role, rotate=True) != old[role]
            while len(answers) < seen + 10 and any(worker.is_alive() for worker in workers):
                time.sleep(0.01)
    stop.set()
    for worker in workers:
        worker.join()
    assert set(answers) == {b"x"}
    assert len(answers) >= 60
    assert call(state.inference, "GET", "/ping", old["inference"]).status == 400
    assert call(state.management, "GET", "/models", old["management"]).status == 400
    with pytest.raises(UsageError, match="only at its start"):
        make_token(state, "api", rotate=True)
    assert state.key_file.stat().st_mode & 0o777 == 0o600


# Bodies


def test_a_body_over_the_limit_is_refused_before_it_is_read_and_the_server_goes_on(state: RunState) -> None:
    with open_request(state.inference, MAX_REQUEST + 1, b"") as connection:
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")
    key = tokens(state)["inference"]
    fields = {1: "echo", 3: b"\x0a\x04body\x12" + b"\x80\x80\x80\x08" + b"x" * MAX_REQUEST}
    assert grpc_code(state.grpc_inference, INFERENCE, "Predictions", fields, key) in {"CANCELLED", "RESOURCE_EXHAUSTED"}
    assert predicts(state)


def test_a_chunked_body_over_the_limit_is_cut_off(state: RunState) -> None:
    head = b"POST /predictions/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    host, _, port = state.inference.removeprefix("http://").partition(":")
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head)
        assert _taken(connection, chunk, 2 * MAX_REQUEST // 0x100000) < 2 * MAX_REQUEST // 0x100000
    assert predicts(state)


def _taken(connection: socket.socket, chunk: bytes, count: int) -> int:
    """Send a chunk after another; return how many went out before the server closed the connection."""
    sent = 0
    with suppress(OSError):
        while sent < count:
            connection.sendall(chunk)
            sent += 1
    return sent


def test_bodies_that_never_end_do_not_hold_up_others(state: RunState) -> None:
    with ExitStack() as held:
        for _ in range(HALF_OPEN):
            held.enter_context(open_request(state.inference, 1_000_000, b"x"))
        assert all(predicts(state) for _ in range(20))
        assert grpc_code(state.grpc_inference, INFERENCE, "Ping", {}, tokens(state)["inference"]) == "OK"


# Names that are paths


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models/%2e%2e%2f%2e%2e"),
        ("GET", "/models/../../etc/passwd"),
        ("GET", "/models/echo/%2e%2e%2f%2e%2e"),
        ("GET", "/models/..?customized=true"),
        ("DELETE", "/models/..%2fecho"),
        ("DELETE", "/models/echo/..%2f1.0"),
        ("PUT", "/models/..%2fecho?min_worker=1"),
        ("PUT", "/models/echo?min_worker=1&model_version=../1.0"),
        ("PUT", "/models/echo/..%2f1.0/set-default"),
        ("PUT", "/models/..%252fecho/1.0/set-default"),
        ("GET", "/v1/models/..%2fecho"),
        ("GET", "/workflows/..%2f.."),
        ("POST", "/workflows?url=..%2foutside.mar"),
    ],
)
def test_a_path_for_a_name_is_not_found_by_the_management_api(state: RunState, method: str, path: str) -> None:
    assert managed(state, method, path).status == 404
    assert registered(state) == {"echo"}


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/%2e%2e%2f%2e%2e",
        "/predictions/../../etc/passwd",
        "/predictions/echo/..%2f1.0",
        "/explanations/..%2fecho",
        "/invocations?model_name=../echo",
        "/models/..%2fecho/invoke",
        "/v1/models/..%2fecho:predict",
        "/v2/models/..%2fecho/infer",
        "/..%2fecho/predict",
        "/../../etc/passwd",
    ],
)
def test_a_path_for_a_name_is_not_found_by_the_inference_api(state: RunState, path: str) -> None:
    assert call(state.inference, "POST", path, tokens(state)["inference"], body=b"x").status == 404


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("DescribeModel", {1: "../echo"}),
        ("DescribeModel", {1: "echo", 2: "../1.0"}),
        ("DescribeModel", {1: "echo", 2: "../1.0", 3: True}),
        ("ScaleWorker", {1: "../echo", 4: 1}),
        ("SetDefault", {1: "echo", 2: "../1.0"}),
        ("UnregisterModel", {1: "../echo"}),
        ("UnregisterModel", {1: "echo", 2: "../1.0"}),
    ],
)
def test_a_path_for_a_name_is_not_found_over_grpc(state: RunState, method: str, fields: Mapping[int, object]) -> None:
    code = grpc_code(state.grpc_management, MANAGEMENT, method, fields, tokens(state)["management"])
    # Asked for what a model says of itself, TorchServe has no other code than this one; nor has it for predictions.
    assert code == ("INTERNAL" if 3 in fields else "NOT_FOUND")
    predicted = grpc_code(state.grpc_inference, INFERENCE, "Predictions", {1: "../echo"}, tokens(state)["inference"])
    assert predicted == "INTERNAL"
    assert registered(state) == {"echo"}


def test_torchserve_takes_a_path_as_a_name_but_never_as_a_path_and_our_client_takes_neither(
    project: Project, state: RunState
) -> None:
    before = _files_outside_the_run(project)
    assert managed(state, "POST", "/models?url=idle.mar&initial_workers=0&model_name=..").status == 200
    assert _files_outside_the_run(project) == before
    assert managed(state, "DELETE", "/models/..").status == 200
    with Client.for_project(project) as client:
        for name in ("..", "../echo", "a/b", "a\nb", ""):
            with pytest.raises(UsageError):
                client.predict(name, b"")
            with pytest.raises(UsageError):
                client.unregister(name)
            # Of a version the server is asked, unless its name holds a slash.
            with pytest.raises(NotFoundError if name in {"..", "a\nb"} else UsageError):
                client.predict("echo", b"", version=name)
        with pytest.raises(UsageError):
            client.register("../outside.mar")


def _files_outside_the_run(project: Project) -> set[Path]:
    above = project.root.parent
    return {path for path in above.rglob("*") if not path.is_relative_to(project.run)}


def test_a_line_break_in_a_name_makes_no_second_header(state: RunState) -> None:
    reply = managed(state, "POST", "/models?url=idle.mar&initial_workers=0&model_name=a%0d%0aX-Evil:%20y%0d%0a")
    assert "x-evil" not in reply.headers
    managed(state, "DELETE", "/models/a%0d%0aX-Evil:%20y%0d%0a")
    assert registered(state) == {"echo"}


# Hostile archives


def _zip(path: Path, good: Path, member: str, *, link: bool = False) -> None:
    path.write_bytes(good.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        if link:
            info = zipfile.ZipInfo("link")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, str(path.parent.parent))
        archive.writestr(member, "slipped")


def _tar(path: Path, good: Path, member: str, *, link: bool = False) -> None:
    with zipfile.ZipFile(good) as source, tarfile.open(path, "w:gz") as archive:
        for name in source.namelist():
            _add(archive, f"top/{name}", source.read(name))
        if link:
            info = tarfile.TarInfo("top/link")
            info.type, info.linkname = tarfile.SYMTYPE, str(path.parent.parent)
            archive.addfile(info)
        _add(archive, f"top/{member}", b"slipped")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("suffix", ["mar", "tar.gz"])
@pytest.mark.parametrize("member", ["../slipped", "{up}{root}/slipped", "{root}/slipped", "link/slipped"])
def test_a_hostile_archive_writes_nothing_outside_and_is_refused_by_marsmith(
    project: Project, state: RunState, suffix: str, member: str
) -> None:
    root = project.root
    hostile = project.model_store / f"hostile.{suffix}"
    name = member.format(root=root, up="../" * 30).replace("//", "/")
    build = _zip if suffix == "mar" else _tar
    build(hostile, project.model_store / "idle.mar", name, link=name.startswith("link/"))
    reply = managed(state, "POST", f"/models?url={hostile.name}&model_name=hostile&initial_workers=0")
    slipped = [
        path for path in [*root.rglob("slipped"), *Path("/").glob("slipped")] if not _is_inside_a_model(path, state)
    ]
    assert slipped == []
    # An absolute name TorchServe takes for one below the model's folder; all else it refuses.
    assert reply.status == (200 if name.startswith("/") else 500)
    if reply.status == 200:
        assert managed(state, "DELETE", "/models/hostile").status == 200
    with pytest.raises(ArchiveError):
        Archive.open(hostile)
    hostile.unlink()


def _is_inside_a_model(path: Path, state: RunState) -> bool:
    return path.is_relative_to(state.folder / "tmp" / "models")


# The machine around it


def test_no_web_page_may_call_the_server(state: RunState) -> None:
    headers = {"Origin": "https://attacker.example", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "POST"):
        reply = call(
            state.inference, method, "/predictions/echo", tokens(state)["inference"], body=b"x", headers=headers
        )
        assert reply.status == 200
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_every_port_is_bound_to_the_loopback_and_workers_have_none(project: Project, state: RunState) -> None:
    java = psutil.Process(state.pid)
    listening = [each.laddr for each in java.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert len(listening) == 5
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    # Children that collect metrics once a minute come and go.
    (described,) = json.loads(managed(state, "GET", "/models/echo").body)
    workers = [psutil.Process(worker["pid"]) for worker in described["workers"]]
    assert workers
    sockets = [each for worker in workers for each in worker.net_connections("all")]
    assert {each.family for each in sockets} == {socket.AF_UNIX}
    folder = str(launch.temporary_folder(project))
    assert all(str(each.laddr).startswith(folder) for each in sockets if each.laddr)


def test_nobody_else_can_read_what_the_server_writes(project: Project, state: RunState) -> None:
    temporary = launch.temporary_folder(project)
    for folder in (state.folder, temporary):
        assert folder.stat().st_mode & 0o777 == 0o700
    written = [state.key_file, *temporary.rglob("*"), *(state.folder / "logs").glob("*_log.log")]
    assert len(written) > 5
    open_to_others = [str(path) for path in written if path.lstat().st_mode & 0o077 and not path.is_symlink()]
    assert open_to_others == []


def test_without_the_model_api_a_workflow_archive_in_the_store_still_runs_its_code(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", enable_model_api="false")
    _workflow(project.model_store / "w.war", tmp_path / "ran")
    with running(project) as state:
        assert managed(state, "POST", "/models?url=w.war").status == 405
        # It answers only after it has given up, long after the code has run.
        threading.Thread(target=_unheard, args=(state, "POST", "/workflows?url=w.war"), daemon=True).start()
        late = time.monotonic() + 240
        while not (tmp_path / "ran").exists() and time.monotonic() < late:
            time.sleep(0.1)
    assert (tmp_path / "ran").exists()


def _unheard(state: RunState, method: str, path: str) -> None:
    with suppress(OSError, http.client.HTTPException):
        managed(state, method, path)


def _workflow(path: Path, ran: Path) -> None:
    manifest = {
        "createdOn": "now",
        "archiverVersion": "0.2",
        "workflow": {"workflowName": "w", "specFile": "spec.yaml", "handler": "h.py"},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("WAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("spec.yaml", "models:\n  m:\n    url: none.mar\ndag:\n  f: [m]\n")
        archive.writestr("h.py", f"open({str(ran)!r}, 'w')\ndef f(data, context):\n    return data\n")
