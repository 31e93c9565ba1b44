"""Faults, clients that go away and changes, all at once: no failure that the front should hide, and Envoy lives."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from marsmith.client.grpc_messages import message_class
from marsmith.server.front.traffic import Canary, Shadow
from support.envoy_front import Place, front_before
from support.light_versions import PREDICTIONS, light_versions
from support.long_tests import long

SECONDS = 60
PATIENCE_S = (30.0, 30.0, 30.0, 0.05, 0.2)
KINDS = ("", "fail", "item422", "missing")


def body(draw: random.Random, *more: str) -> bytes:
    faults = {"2.0": [draw.choice((0, 0, 0, 0.15, 0.3)), draw.choice((*KINDS, *more))], "": [draw.choice((0, 0.1)), ""]}
    return json.dumps(faults).encode() + b"\n" + b"x" * draw.choice((0, 100, 200_000))


def ask_rest(place: Place, draw: random.Random) -> str:
    with closing(http.client.HTTPConnection(urlsplit(place.url).netloc, timeout=draw.choice(PATIENCE_S))) as connection:
        try:
            connection.request("POST", "/predictions/m", body(draw, "busy", "break"))
            reply = connection.getresponse()
            reply.read()
        except TimeoutError:
            return "gave up"
        return str(reply.status)


def ask_grpc(place: Place, draw: random.Random) -> str:
    request = message_class("PredictionsRequest")(model_name="m", input={"body": body(draw, "item500")})
    with grpc.insecure_channel(place.grpc) as channel:
        try:
            channel.unary_unary(PREDICTIONS)(request.SerializeToString(), timeout=draw.choice(PATIENCE_S))
        except grpc.RpcError as error:
            return "gave up" if error.code().name == "DEADLINE_EXCEEDED" else str(error.code().name)
    return "200"


@long("servers")
def test_whatever_happens_at_once_no_user_sees_a_failure_of_the_canary(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    end = time.monotonic() + SECONDS

    def loop(ask: Callable[[Place, random.Random], str], place: Place, seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < end:
            found[ask(place, draw)] += 1

    with light_versions() as light, front_before(tmp_path / "run", light.backend) as place:
        pid, draw = place.pid, random.Random(5)
        asks = (ask_rest, ask_grpc) * 3
        threads = [threading.Thread(target=loop, args=(ask, place, seed)) for seed, ask in enumerate(asks)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            share, version = draw.choice((100, 5_000, 10_000)), draw.choice(("2.0", "2.0", "3.0"))
            canary = Canary("m", version, share, per_try_timeout_s=0.1, seed=draw.randrange(9))
            copies = [Shadow("m", name, 5_000) for name in ("", "2.0") if draw.random() < 0.5]
            place.change(canary, *copies)
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        assert place.pid == pid
    assert set(found) == {"200", "422", "gave up"}
    assert found["200"] > 100
