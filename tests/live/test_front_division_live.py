"""How a real Envoy divides, repeats and copies requests. A light server is behind it: it fails on request."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from marsmith import child_processes
from marsmith.client.grpc_messages import message_class
from marsmith.client.metrics import parse_exposition
from marsmith.deploy.front import CopyCounts
from marsmith.deploy.traffic.mirror import copy_counts
from marsmith.errors import FrontError
from marsmith.server.front import access_log, admin, counters, files, routes
from marsmith.server.front.bootstrap import ANSWERS_FILE, CLUSTERS_FILE, ROUTES_FILE
from marsmith.server.front.duty import FrontDuty
from marsmith.server.front.files import apply_traffic, read_traffic
from marsmith.server.front.traffic import Canary, Shadow, Sticky, Traffic
from support.envoy_front import Place, front_before
from support.light_versions import MODEL_INFER, PREDICTIONS, STREAM, LightVersions, Seen, light_versions
from support.live_server import until
from support.raw_calls import call

HEADER = Sticky("header", "X-User-Id")
ALL = Canary("m", "2.0", 10_000, HEADER, per_try_timeout_s=30)


@pytest.fixture(scope="module")
def light() -> Iterator[LightVersions]:
    with light_versions() as versions:
        yield versions


@pytest.fixture(scope="module")
def place(light: LightVersions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with front_before(tmp_path_factory.mktemp("front") / "run", light.backend) as place:
        yield place


def ask(
    place: Place, body: dict[str, Any] | None = None, path: str = "/predictions/m", **headers: str
) -> tuple[int, str]:
    """Return the status and the version that has answered."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = call(
        place.url,
        "POST",
        path,
        body=body if isinstance(body, bytes) else json.dumps(body or {}).encode(),
        headers=names,
    )
    return answer.status, str(json.loads(answer.body).get("version"))


def ask_grpc(place: Place, body: Any = None, *, compressed: bool = False, version: str = "", **metadata: str) -> Any:
    """Return the version that has answered, or the status."""
    request = message_class("PredictionsRequest")(model_name="m", model_version=version)
    request.input["body"] = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    compression = grpc.Compression.Gzip if compressed else None
    with grpc.insecure_channel(place.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        unary = channel.unary_unary(PREDICTIONS)
        try:
            raw = unary(request.SerializeToString(), metadata=pairs, timeout=60, compression=compression)
        except grpc.RpcError as error:
            return error.code().name
    answer = json.loads(message_class("PredictionResponse").FromString(raw).prediction)
    return answer.get("version", answer.get("code"))


def infer(place: Place, body: Any = None, *, own_id: str = "", version: str = "") -> tuple[str, int]:
    """Return the version that has answered over ModelInfer, and the number of its outputs."""
    request = oip.ModelInferRequest(model_name="m", id=own_id, model_version=version)
    request.inputs.add(name="in", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        json.dumps(body or {}).encode()
    )
    with grpc.insecure_channel(place.grpc) as channel:
        raw = channel.unary_unary(MODEL_INFER)(request.SerializeToString(), timeout=60)
    answer = oip.ModelInferResponse.FromString(raw)
    return answer.model_version, len(answer.outputs)


def on_canary(place: Place, share: int, users: range) -> set[int]:
    place.change(replace(ALL, share=share))
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda user: ask(place, x_user_id=f"user-{user}"), users)
        return {user for user, answer in zip(users, found, strict=True) if answer == (200, "2.0")}


def test_a_share_is_that_part_of_the_users_and_who_is_in_it_is_in_each_larger_one(place: Place) -> None:
    users = range(600)
    fifth, half = on_canary(place, 2_000, users), on_canary(place, 5_000, users)
    # Six standard deviations of a fair draw.
    assert abs(len(fifth) - 120) < 60
    assert abs(len(half) - 300) < 75
    assert fifth <= half
    assert on_canary(place, 0, range(50)) == set()
    assert on_canary(place, 10_000, range(50)) == set(range(50))
    # The same users over gRPC.
    place.change(replace(ALL, share=2_000))
    assert {user for user in range(40) if ask_grpc(place, x_user_id=f"user-{user}") == "2.0"} == fifth & set(range(40))


def test_another_seed_draws_other_users(place: Place) -> None:
    first = on_canary(place, 5_000, range(100))
    place.change(replace(ALL, share=5_000, seed=1))
    second = {user for user in range(100) if ask(place, x_user_id=f"user-{user}")[1] == "2.0"}
    assert first != second


def test_users_are_known_by_a_cookie_and_those_without_one_by_their_request(place: Place, light: LightVersions) -> None:
    place.change(replace(ALL, share=5_000, sticky=Sticky("cookie", "session")))
    for user in range(10):
        cookie = f"a=b; session=user{user}; xsession=other"
        assert len({ask(place, cookie=cookie) for _ in range(4)}) == 1
    drawn = [ask(place, cookie="a=b; session=") for _ in range(60)]
    assert {version for _, version in drawn} == {"", "2.0"}
    again = [ask(place, x_request_id="one") for _ in range(10)]
    assert len(set(again)) == 1
    answers = place.answers(110)
    assert [len(answer.user) for answer in answers] == [16] * 40 + [0] * 70
    assert len({answer.user for answer in answers[:40]}) == 10
    assert "user1" not in (place.front.folder / ANSWERS_FILE).read_text()


@pytest.mark.parametrize(
    ("path", "arrives"),
    [
        ("/predictions/m", "/predictions/m/2.0"),
        ("/predictions/m/", "/predictions/m/2.0"),
        ("/predictions/m?a=1/2", "/predictions/m/2.0?a=1/2"),
        ("/v1/models/m:predict", "/predictions/m/2.0"),
        ("/v2/models/m/infer?a=1", "/predictions/m/2.0?a=1"),
        # They name a version, or another model, or are no prediction.
        ("/predictions/m/1.0", None),
        ("/predictions/m/1.0?x=/predictions/m", None),
        ("/v2/models/m/versions/1.0/infer", None),
        ("/predictions/mm", None),
        ("/explanations/m", None),
        ("/v1/models/m", None),
    ],
)
def test_only_predictions_that_name_no_version_are_divided(
    place: Place, light: LightVersions, path: str, arrives: str | None
) -> None:
    place.change(ALL)
    assert ask(place, path=path)[0] == 200
    assert light.seen[-1].path == (arrives or path)
    # A second attempt is for what the client has asked for.
    if arrives:
        assert ask(place, {"2.0": "fail"}, path=path) == (200, "")
        assert light.seen[-1].path == path


def test_grpc_requests_that_name_a_version_or_cannot_be_read_are_left_alone(place: Place, light: LightVersions) -> None:
    place.change(ALL)
    assert ask_grpc(place) == "2.0"
    assert ask_grpc(place, version="1.0") == "1.0"
    assert infer(place) == ("2.0", 1)
    assert infer(place, version="1.0") == ("1.0", 1)
    # The front does not read compressed messages: they get the default version.
    assert ask_grpc(place, b"{}\n" + b" " * 100_000, compressed=True) == ""
    assert ask_grpc(place, b"{}\n" + b"x" * 5_000_000) == "2.0"
    # Fields may come in any order, and another model's message is left alone too.
    named, body = message_class("PredictionsRequest")(model_name="m"), message_class("PredictionsRequest")()
    body.input["body"] = b"{}"
    for raw, version in (
        (body.SerializeToString() + named.SerializeToString(), "2.0"),
        (message_class("PredictionsRequest")(model_name="x").SerializeToString() + body.SerializeToString(), ""),
    ):
        with grpc.insecure_channel(place.grpc) as channel:
            reply = channel.unary_unary(PREDICTIONS)(raw, timeout=60)
        said = json.loads(message_class("PredictionResponse").FromString(reply).prediction)
        assert said["version"] == version


def test_a_stream_passes_message_by_message_and_may_be_longer_than_a_request(
    place: Place, light: LightVersions
) -> None:
    place.change(ALL)
    answered = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for number in range(4):
            # Who holds a stream until it is whole waits here for ever.
            answered.acquire()
            body = b"%d" % number + b"x" * 2_000_000
            yield message_class("PredictionsRequest")(model_name="m", input={"body": body}).SerializeToString()

    received = []
    with grpc.insecure_channel(place.grpc) as channel:
        for part in channel.stream_stream(STREAM)(requests(), timeout=60):
            received.append(message_class("PredictionResponse").FromString(part).prediction[:1])
            answered.release()
    assert received == [b"0", b"1", b"2", b"3"]
    # A stream is not divided.
    assert {each.version for each in light.seen if each.path == STREAM} == {""}


@pytest.mark.parametrize("wanted", ["fail", "missing", "break", "busy"])
def test_whoever_fails_on_the_canary_gets_the_answer_of_the_default_version(place: Place, wanted: str) -> None:
    place.change(ALL)
    assert [ask(place, {"2.0": wanted}) for _ in range(5)] == [(200, "")] * 5
    answers = place.answers(5)
    assert {(each.version, each.attempts, each.status) for each in answers} == {("2.0", 2, 200)}
    assert not any(each.reply_failed for each in answers)
    # A connection that breaks is TorchServe's fault, not the version's.
    assert {(each.first_failure, each.failed_on_canary_alone) for each in answers} == {
        ("connection", False) if wanted == "break" else ("answer", True)
    }


@pytest.mark.parametrize("wanted", ["fail", "missing", "item500"])
def test_over_grpc_an_item_that_failed_is_repeated_as_a_call_that_failed(place: Place, wanted: str) -> None:
    place.change(ALL)
    assert [ask_grpc(place, {"2.0": wanted}) for _ in range(5)] == [""] * 5
    assert infer(place, {"2.0": "item500"}) == ("", 1)
    assert infer(place, {"2.0": "fail"}) == ("", 1)
    answers = place.answers(7)
    assert all(each.attempts == 2 and each.failed_on_canary_alone for each in answers)


def test_what_the_client_did_wrong_is_not_repeated_and_told_apart(place: Place, light: LightVersions) -> None:
    place.change(ALL)
    before = len(light.seen)
    assert ask(place, {"2.0": "item422"}) == (422, "2.0")
    assert ask_grpc(place, {"2.0": "item422"}) == 422
    assert len(light.seen) == before + 2
    answers = place.answers(2)
    assert all(each.was_refused and not each.reply_failed and not each.failed_on_canary_alone for each in answers)


def test_items_that_fail_on_the_default_version_are_counted_too(place: Place) -> None:
    # Else a version against itself would seem to fail more.
    place.change(replace(ALL, share=0))
    assert ask_grpc(place, {"": "item500"}) == 500
    assert infer(place, {"": "item500"}) == ("", 0)
    assert ask(place, {"": "fail"}) == (500, "")
    assert all(each.reply_failed and not each.failed_on_canary_alone for each in place.answers(3))


@pytest.mark.parametrize("wanted", ["fail", "busy"])
def test_a_request_that_fails_on_both_versions_is_sent_twice_and_no_evidence(
    place: Place, light: LightVersions, wanted: str
) -> None:
    place.change(ALL)
    before = len(light.seen)
    assert ask(place, {"2.0": wanted, "": wanted})[0] >= 500
    assert [each.version for each in light.seen[before:]] == ["2.0", ""]
    (answer,) = place.answers(1)
    assert answer.was_repeated
    assert answer.reply_failed
    assert not answer.failed_on_canary_alone


def test_a_canary_that_hangs_is_given_up_and_the_default_version_may_take_its_time(
    place: Place, light: LightVersions
) -> None:
    place.change(replace(ALL, per_try_timeout_s=0.2))
    before = len(light.seen)
    # Longer than the limit on both; the limit is for the canary alone.
    assert ask(place, {"2.0": [5, ""], "": [1, ""]}) == (200, "")
    assert ask_grpc(place, {"2.0": [5, ""], "": [1, ""]}) == ""
    assert Counter(each.version for each in light.seen[before:]) == {"2.0": 2, "": 2}
    answers = place.answers(2)
    assert {each.first_failure for each in answers} == {"time"}
    assert all(each.failed_on_canary_alone and each.duration_ms < 5_000 for each in answers)


@pytest.mark.parametrize("late", ["", "fail", "item500"])
def test_an_answer_that_comes_too_late_is_not_the_users(place: Place, late: str) -> None:
    place.change(replace(ALL, per_try_timeout_s=0.2))
    # It comes while the default version is still busy with the second attempt.
    wanted = {"2.0": [0.6, late], "": [1.2, ""]}
    pid = place.pid
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask_grpc, place, wanted) for _ in range(4)]
        rest = [pool.submit(ask, place, wanted) for _ in range(4)]
        assert {each.result() for each in calls} == {""}
        assert {each.result() for each in rest} == {(200, "")}
    assert {each.first_failure for each in place.answers(8)} == {"time"}
    assert place.pid == pid


def test_many_failures_at_once_reach_nobody(place: Place) -> None:
    place.change(ALL)
    with ThreadPoolExecutor(32) as pool:
        rest = list(pool.map(lambda _: ask(place, {"2.0": "fail", "": [0.2, ""]}), range(64)))
        calls = list(pool.map(lambda _: ask_grpc(place, {"2.0": "fail", "": [0.2, ""]}), range(64)))
    assert set(rest) == {(200, "")}
    assert set(calls) == {""}


def test_a_large_request_is_repeated_whole(place: Place) -> None:
    place.change(ALL)
    body = b'{"2.0": "fail"}\n' + b"x" * 5_000_000
    answer = call(place.url, "POST", "/predictions/m", body=body)
    assert json.loads(answer.body) == {"version": "", "bytes": len(body)}
    assert ask_grpc(place, b'{"2.0": "item500"}\n' + b"x" * 5_000_000) == ""


def test_without_the_shield_failures_reach_the_user_and_are_evidence(place: Place, light: LightVersions) -> None:
    place.change(replace(ALL, shielded=False))
    before = len(light.seen)
    assert ask(place, {"2.0": "fail"}) == (500, "2.0")
    assert ask_grpc(place, {"2.0": "item500"}) == 500
    assert len(light.seen) == before + 2
    assert all(each.failed_on_canary_alone and each.attempts == 1 for each in place.answers(2))


def test_what_clients_send_under_the_fronts_names_never_arrives(place: Place, light: LightVersions) -> None:
    place.change(replace(ALL, share=0))
    sent: dict[str, Any] = {
        "x_marsmith_log": "1",
        "x_marsmith_model": "rest/m",
        "x_marsmith_draw": "1",
        "x_marsmith_retry": "1",
    }
    ask(place, path="/predictions/other", x_forwarded_for="127.0.0.1", x_envoy_retry_on="5xx", **sent)
    assert not [name for name in light.seen[-1].said if name.startswith(("x-marsmith-", "x-envoy-retry"))]
    ask_grpc(place, x_marsmith_log="1")
    assert light.seen[-1].said == {}


def is_logged(seen: Seen) -> bool:
    return seen.said.get("x-marsmith-log") == "1" or seen.said.get("id", "").startswith("marsmith-")


def is_copy(seen: Seen) -> bool:
    return seen.said.get("x-marsmith-shadow") == "1" or seen.said.get("id", "").startswith("marsmith-shadow/")


def joined_by(seen: Seen) -> str:
    return seen.said["id"].split("/")[1] if seen.path == MODEL_INFER else seen.said["x-request-id"]


def test_a_shadow_gets_the_sampled_requests_with_what_joins_them(place: Place, light: LightVersions) -> None:
    place.change(Shadow("m", "2.0", 5_000))
    light.seen.clear()
    assert {ask(place, x_request_id=f"rest-{i}") for i in range(40)} == {(200, "")}
    assert {ask_grpc(place, x_request_id=f"grpc-{i}") for i in range(40)} == {""}
    assert {infer(place, own_id=f"own-{i}") for i in range(20)} == {("", 1)}
    sampled = [each for each in place.answers(100) if each.copied_to == "2.0"]
    assert 30 < len(sampled) < 70
    until(lambda: len([each for each in light.seen if each.version == "2.0"]) == len(sampled), 30)
    for version in ("", "2.0"):
        logged = [each for each in light.seen if each.version == version and is_logged(each)]
        assert Counter(map(joined_by, logged)) == Counter(each.request_id for each in sampled)
        assert {each.path.partition("/2.0")[0] for each in logged} == {"/predictions/m", PREDICTIONS, MODEL_INFER}
    owners = [each.said["id"].split("/")[2] for each in light.seen if each.path == MODEL_INFER and is_logged(each)]
    assert owners
    assert all(owner.startswith("own-") for owner in owners)
    assert all(is_copy(each) == (each.version == "2.0") for each in light.seen)


def stats(place: Place) -> str:
    """Return the counters of Envoy."""
    return admin.ask(place.front.folder, "/stats")


def test_a_shadow_that_hangs_costs_nothing(place: Place, light: LightVersions) -> None:
    place.change(Shadow("m", "2.0", 10_000))
    before = copy_counts(place.front.folder, "m", of_canary=False)
    light.seen.clear()
    began = time.monotonic()
    assert {ask(place, {"2.0": [3, ""]}) for _ in range(40)} == {(200, "")}
    # It holds its places for 3 s; the default version would need as long for each request.
    assert time.monotonic() - began < 40
    assert len([each for each in light.seen if each.version == "2.0"]) <= 40
    assert {ask_grpc(place, {"2.0": [3, ""]}) for _ in range(40)} == {""}

    def counts() -> CopyCounts:
        return copy_counts(place.front.folder, "m", of_canary=False)

    # Every copy is counted, over each API: one that waits for a connection is sent later.
    until(lambda: counts().sent + counts().dropped == before.sent + before.dropped + 80, 30)
    for api, counter in (("rest", "pending"), ("grpc", "active")):
        assert re.search(rf"shadow/{api}/m@2~0\.upstream_rq_{counter}_overflow: [1-9]", stats(place))


def test_the_default_version_gets_copies_of_what_the_canary_serves(place: Place, light: LightVersions) -> None:
    place.change(replace(ALL, share=5_000), Shadow("m", "", 10_000))
    light.seen.clear()
    served = [ask(place, x_user_id=f"u{i}")[1] for i in range(40)]
    on_trial = served.count("2.0")
    assert 0 < on_trial < 40
    until(lambda: len(light.copies()) == on_trial, 30)
    assert {each.version for each in light.copies()} == {""}
    assert {each.copied_to for each in place.answers(40) if each.version == "2.0"} == {"default"}


def test_share_after_share_no_request_fails(place: Place) -> None:
    place.change(replace(ALL, share=0))
    done: list[bool] = []
    found: list[tuple[int, str]] = []

    def load(user: int) -> None:
        while not done:
            found.append(ask(place, x_user_id=f"u{user}"))
            found.append((200, ask_grpc(place, x_user_id=f"u{user}")))

    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(load, user) for user in range(4)]
        try:
            for step in range(60):
                place.change(replace(ALL, share=(100, 500, 2_500, 10_000)[step % 4], version=f"{2 + step // 20}.0"))
        finally:
            done.append(True)
        for loop in loops:
            loop.result()
    assert set(found) <= {(200, version) for version in ("", "2.0", "3.0", "4.0")}
    assert len(found) > 100


@pytest.mark.parametrize("after", [(), (replace(ALL, version="3.0"),), (replace(ALL, share=1),)])
def test_requests_in_flight_survive_a_change(place: Place, light: LightVersions, after: tuple[Canary, ...]) -> None:
    place.change(ALL)
    before = len(light.seen)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, place, {"2.0": [1.5, ""]}) for _ in range(4)]
        waiting += [pool.submit(ask_grpc, place, {"2.0": [1.5, ""]}) for _ in range(4)]
        until(lambda: len(light.seen) == before + 8, 30)
        place.change(*after)
        assert {str(each.result()) for each in waiting} == {"(200, '2.0')", "2.0"}


def test_a_request_in_flight_that_fails_after_its_canary_has_gone_is_repeated(
    place: Place, light: LightVersions
) -> None:
    # As when a canary goes back because it fails.
    place.change(ALL)
    before = len(light.seen)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, place, {"2.0": [1, "fail"]}) for _ in range(4)]
        waiting += [pool.submit(ask_grpc, place, {"2.0": [1, "item500"]}) for _ in range(4)]
        until(lambda: len(light.seen) == before + 8, 30)
        place.change()
        place.change(replace(ALL, version="3.0"))
        assert {str(each.result()) for each in waiting} == {"(200, '')", ""}


def test_what_envoy_refuses_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(ALL)
    folder, real = place.front.folder, routes.render
    before = {name: (folder / name).read_bytes() for name in (CLUSTERS_FILE, ROUTES_FILE)}
    wrong = [{"name": "all", "domains": []}]
    monkeypatch.setattr(routes, "render", lambda *arguments: {**real(*arguments), "virtual_hosts": wrong})
    wanted = Traffic((replace(ALL, version="3.0"),))
    with pytest.raises(FrontError, match=r"Envoy refuses its configuration: .*[Dd]omains"):
        apply_traffic(folder, wanted)
    # Should the check before miss something, the running Envoy says so.
    monkeypatch.setattr(files, "_validate", lambda *arguments: None)
    with pytest.raises(FrontError, match=r"Envoy refuses its new rds\.json"):
        apply_traffic(folder, wanted)
    monkeypatch.setattr(routes, "render", real)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert read_traffic(folder) == Traffic((ALL,))
    assert ask(place) == (200, "2.0")
    place.change(replace(ALL, version="3.0"))
    assert ask(place) == (200, "3.0")


def test_new_shares_and_the_way_back_need_no_check(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(ALL, Shadow("m", "2.0", 100))
    checked: list[object] = []
    monkeypatch.setattr(files, "_validate", lambda folder, new: checked.append(new.traffic))
    for parts in ((replace(ALL, share=7), Shadow("m", "2.0", 100)), (ALL,), ()):
        place.change(*parts)
    assert checked == []
    place.change(ALL)
    assert checked == [Traffic((ALL,))]


def test_a_log_of_answers_that_nobody_reads_begins_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(ALL)
    ask(place)
    place.answers(1)
    told: list[str] = []
    duty = FrontDuty(place.front, child_processes.start, told.append)
    log = place.front.folder / ANSWERS_FILE
    older, size = log.with_name(f"{ANSWERS_FILE}.1"), log.stat().st_size
    monkeypatch.setattr(access_log, "LARGEST_BYTES", size)
    duty.tick()
    assert not older.exists()
    monkeypatch.setattr(access_log, "LARGEST_BYTES", size // 2 - 1)
    duty.tick()
    assert older.stat().st_size == size
    # Envoy goes on with a new one.
    ask(place)
    assert place.answers(1)[0].status == 200
    assert log.stat().st_size < size
    assert told == []


def test_files_survive_the_end_of_everything(place: Place, light: LightVersions, tmp_path: Path) -> None:
    with front_before(tmp_path / "run", light.backend) as other:
        other.change(ALL, Shadow("x", "2.0", 1))
        folder = other.front.folder
    assert read_traffic(folder) == Traffic((ALL,), (Shadow("x", "2.0", 1),))
    other.start()
    try:
        assert ask(other) == (200, "2.0")
    finally:
        other.front.close(0.0)


def test_requests_are_counted_and_timed_by_model_whatever_their_path(place: Place) -> None:
    place.change()
    long = "a-model.with_a-long.name" * 8
    files.count_models(place.front.folder, ["m", "m.2", long])
    paths = ["/predictions/m", "/predictions/m/2.0?a=1", "/v1/models/m:predict", "/v2/models/m/versions/2.0/infer"]
    for path in [*paths, "/predictions/m.2", f"/predictions/{long}", "/predictions/m3", "/predictions/m/2.0/x"]:
        ask(place, path=path)
    assert ask(place, {"": "fail"})[0] == 500
    assert ask(place, {"": "missing"}, "/predictions/m.2")[0] == 404

    def seen() -> dict[tuple[str, str, str], float]:
        text = admin.ask(place.front.folder, counters.STATISTICS)
        return {
            (each.name, counters.model_of(each.labels), each.labels.get(counters.CLASS_LABEL, "")): each.value
            for each in parse_exposition(text)
            if each.name in {counters.REPLIES, f"{counters.TIME_MS}_count"}
            and counters.model_of(each.labels) != "other"
        }

    # Envoy counts times every five seconds.
    until(lambda: (f"{counters.TIME_MS}_count", long, "") in seen(), 30)
    assert seen() == {
        (counters.REPLIES, "m", "2"): 4,
        (counters.REPLIES, "m", "5"): 1,
        (counters.REPLIES, "m.2", "2"): 1,
        (counters.REPLIES, "m.2", "4"): 1,
        (counters.REPLIES, long, "2"): 1,
        (f"{counters.TIME_MS}_count", "m", ""): 5,
        (f"{counters.TIME_MS}_count", "m.2", ""): 2,
        (f"{counters.TIME_MS}_count", long, ""): 1,
    }
    # A rollout keeps them.
    place.change(ALL)
    assert ask(place) == (200, "2.0")
    until(lambda: seen()[counters.REPLIES, "m", "2"] == 5, 30)
