from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from support.handler_fixtures import WireReply, Worker, classifier_folder, write_examples, write_sums
from support.pictures import picture

RED, GREEN, BLUE = picture(255, 0, 0), picture(0, 255, 0), picture(0, 0, 255)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(classifier_folder(tmp_path / "model"), "image_classifier_handler.py")


def top(reply: WireReply) -> str:
    assert reply.status == 200, reply.body
    return next(iter(reply.json()))


def b64(body: bytes) -> str:
    return base64.b64encode(body).decode()


def as_json(value: object) -> tuple[bytes, str]:
    return json.dumps(value).encode(), "application/json"


def test_a_photo_is_answered_with_labels_and_probabilities_best_first(worker: Worker) -> None:
    (reply,) = worker.send(BLUE)
    assert reply.content_type == "application/json"
    probabilities = reply.json()
    assert next(iter(probabilities)) == "blue"
    assert sorted(probabilities) == ["blue", "green", "red"]
    assert sum(probabilities.values()) == pytest.approx(1)
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)


def test_a_broken_photo_gets_its_own_4xx_and_its_neighbours_get_the_answers_of_the_batch_without_it(
    worker: Worker,
) -> None:
    good = worker.send(RED, GREEN, BLUE)
    mixed = worker.send(RED, RED[: len(RED) // 2], GREEN, BLUE)
    assert [reply.status for reply in mixed] == [200, 400, 200, 200] or mixed[1].status == 422
    assert [mixed[0].body, mixed[2].body, mixed[3].body] == [reply.body for reply in good]
    assert mixed[1].json().keys() == {"code", "type", "message", "request_id"}
    assert mixed[1].json()["code"] == mixed[1].status
    assert mixed[1].json()["request_id"] == "id-1"
    assert mixed[1].content_type == "application/json"
    assert mixed[1].phrase.isascii()
    assert mixed[1].phrase


def test_something_that_is_no_image_is_415(worker: Worker) -> None:
    html, number, empty, image = worker.send(b"<html></html>", as_json({"data": 5}), b"", RED)
    assert [html.status, number.status, empty.status, image.status] == [415, 415, 400, 200]


def test_every_way_of_sending_one_image_gives_the_same_answer(worker: Worker) -> None:
    ways = [
        RED,
        (RED, "image/png"),
        [("data", "image/png", RED)],
        (b64(RED).encode(), "text/plain"),
        as_json({"data": b64(RED)}),
        as_json({"b64": b64(RED)}),
        as_json({"data": {"b64": b64(RED)}, "target": 0}),
        as_json({"data": "data:image/png;base64," + b64(RED)}),
        # gRPC sends no content type.
        json.dumps({"data": b64(RED)}).encode(),
        (json.dumps({"data": b64(RED)}).encode(), "application/json; charset=utf-8"),
    ]
    expected = worker.send(RED)[0].body
    for way in ways:
        assert worker.send(way)[0].body == expected, way


def test_several_images_in_one_request_are_answered_with_a_list(worker: Worker) -> None:
    form = [("first", "image/png", RED), ("second", "image/png", GREEN)]
    in_form, in_json, alone = worker.send(form, as_json([b64(RED), {"b64": b64(GREEN)}]), BLUE)
    assert [next(iter(reply)) for reply in in_form.json()] == ["red", "green"]
    assert in_json.json() == in_form.json()
    assert top(alone) == "blue"


def test_more_images_than_the_batch_size_are_all_answered(worker: Worker) -> None:
    many, alone = worker.send(as_json([b64(RED), b64(GREEN)] * 5), BLUE)
    assert [next(iter(reply)) for reply in many.json()] == ["red", "green"] * 5
    assert top(alone) == "blue"


def test_kserve_v1_answers_every_instance_of_every_request(worker: Worker) -> None:
    first, second = worker.send(
        as_json({"instances": [{"data": b64(RED)}, {"image": {"b64": b64(GREEN)}}]}),
        as_json({"instances": [{"b64": b64(BLUE)}]}),
    )
    assert [next(iter(reply)) for reply in first.json()["predictions"]] == ["red", "green"]
    assert [next(iter(reply)) for reply in second.json()["predictions"]] == ["blue"]


def test_kserve_v2_answers_every_input_under_its_name(worker: Worker) -> None:
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [b64(body)]}
        for name, body in [("a", RED), ("b", BLUE)]
    ]
    first, second = worker.send(as_json({"id": "mine", "inputs": inputs}), as_json({"inputs": inputs[1:]}))
    outputs = first.json()["outputs"]
    assert first.json()["id"] == "mine"
    assert first.json()["model_name"] == "tiny"
    assert [(output["name"], output["datatype"], output["shape"]) for output in outputs] == [
        ("a", "BYTES", [1]),
        ("b", "BYTES", [1]),
    ]
    assert [next(iter(output["data"][0])) for output in outputs] == ["red", "blue"]
    assert second.json()["id"] == "id-1"


def test_one_bad_image_among_several_fails_its_request_and_says_which(worker: Worker) -> None:
    bad, good = worker.send(as_json({"instances": [{"b64": b64(RED)}, {"b64": "!!"}, 7]}), GREEN)
    assert bad.status == 400
    assert top(good) == "green"
    unreadable, good = worker.send(as_json([b64(RED), b64(b"nothing")]), GREEN)
    assert unreadable.status == 415
    assert unreadable.json()["message"].startswith("item 2 of 2: ")
    assert top(good) == "green"


def test_fewer_classes_than_top_k_are_answered_and_more_are_cut(tmp_path: Path) -> None:
    worker = Worker(classifier_folder(tmp_path / "model", top_k=2), "image_classifier_handler.py")
    assert len(worker.send(RED)[0].json()) == 2


def test_an_image_with_too_many_pixels_is_413(tmp_path: Path) -> None:
    worker = Worker(classifier_folder(tmp_path / "model", max_image_pixels=1000), "image_classifier_handler.py")
    large, small = worker.send(RED, picture(255, 0, 0, size=(20, 20)))
    assert [large.status, small.status] == [413, 200]


def test_labels_beyond_ascii_arrive_as_utf8(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "model")
    (folder / "index_to_name.json").write_text(json.dumps({"0": ["n01", "rött 🐈"]}), encoding="utf-8")
    (reply,) = Worker(folder, "image_classifier_handler.py").send(RED)
    assert "rött 🐈".encode() in reply.body
    assert next(iter(reply.json())) == "rött 🐈"


def test_several_threads_decode_a_batch_in_its_order(tmp_path: Path) -> None:
    worker = Worker(
        classifier_folder(tmp_path / "model", decode_threads=3), "image_classifier_handler.py", batch_size=8
    )
    replies = worker.send(RED, GREEN, b"broken", BLUE, GREEN, RED)
    assert [top(reply) if reply.status == 200 else reply.status for reply in replies] == [
        "red",
        "green",
        415,
        "blue",
        "green",
        "red",
    ]


def test_an_archive_that_proves_itself_is_loaded_and_one_that_answers_differently_is_not(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "model")
    validated = Worker(folder, "image_classifier_handler.py").send(RED)[0].json()
    example = {
        "input": "red.png",
        "content_type": "image/png",
        "status": 200,
        "reply": validated,
        "reply_sha256": None,
        "tolerance": 1e-3,
    }
    write_examples(folder, [example], {"red.png": RED})
    write_sums(folder)
    worker = Worker(folder, "image_classifier_handler.py")
    assert worker.send(RED)[0].json() == validated
    write_examples(folder, [{**example, "reply": {**validated, "red": validated["red"] - 0.25}}], {"red.png": RED})
    write_sums(folder)
    with pytest.raises(RuntimeError, match=r"example 'red.png' alone: reply\['red'\]: .* \(tolerance 0\.001\)"):
        Worker(folder, "image_classifier_handler.py")


def test_the_frontend_is_told_about_the_loaded_version_when_it_asks(worker: Worker) -> None:
    (reply,) = worker.send(b"", headers={"describe": "True"})
    assert reply.json()["device"] == "cpu"
    assert reply.json()["batch_size"] == 4


def test_an_explanation_is_refused_and_not_answered_with_a_prediction(worker: Worker) -> None:
    (reply,) = worker.send(RED, headers={"explain": "True"})
    assert reply.status == 501
