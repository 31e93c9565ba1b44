"""What drift is watched by: figures of classes, numbers, pictures and embeddings, and each handler's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marsmith_handler import watched
from marsmith_handler.request import Request
from marsmith_handler.text.word_pieces import WordPieces
from object_detector_handler import ObjectDetectorHandler
from support.pictures import picture
from tensor_handler import TensorHandler
from text_classifier_handler import TextClassifierHandler
from text_embedding_handler import TextEmbeddingHandler
from voice_activity_handler import VoiceActivityHandler

probabilities = st.dictionaries(st.text(max_size=4), st.floats(0, 1), min_size=1, max_size=8)


def test_a_classifiers_reply_has_class_confidence_margin_and_entropy() -> None:
    found = watched.of_classes({"cat": 0.5, "dog": 0.25})
    expected = {"class": "cat", "confidence": 0.5, "margin": 0.25}
    assert {name: found[name] for name in expected} == expected
    assert found["entropy"] == pytest.approx(-0.5 * math.log(0.5) - 2 * 0.25 * math.log(0.25))
    assert watched.of_classes({"cat": 1.0})["entropy"] == 0


@pytest.mark.parametrize("reply", [None, [], {}, [0.5], {"a": "b"}, {"a": True}, {"a": 2.0}, {"a": [0.5]}])
def test_other_replies_have_no_class(reply: Any) -> None:
    assert watched.of_classes(reply) == {}


@given(probabilities)
def test_figures_of_classes_stay_in_their_ranges(reply: dict[str, float]) -> None:
    found = watched.cleaned(watched.of_classes(reply))
    assert 0 <= float(found["margin"]) <= float(found["confidence"]) <= 1
    assert float(found["entropy"]) >= 0


def test_missing_numbers_are_counted_and_left_out() -> None:
    found = watched.of_numbers(np.array([1.0, 3.0, math.nan, math.inf]))
    assert found == {"missing": 0.5, "mean": 2.0, "std": 1.0}
    assert watched.of_numbers(np.array([math.nan])) == {"missing": 1.0}
    assert watched.of_numbers(np.array([], dtype=float)) == watched.of_numbers(np.array(["a"])) == {}


def _figures(pixels: np.ndarray[Any, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in watched.of_picture(pixels).items()}


def test_a_darker_flatter_and_blurred_picture_shows_in_its_figures() -> None:
    draw = np.random.default_rng(1)
    sharp = draw.integers(0, 256, (3, 64, 64), dtype=np.uint8)
    blurred = ((sharp[:, :, :-1].astype(int) + sharp[:, :, 1:]) // 2).astype(np.uint8)
    first, second, dark = map(_figures, (sharp, blurred, sharp // 2))
    assert second["blur"] < first["blur"]
    assert dark["brightness"] == pytest.approx(first["brightness"] / 2, abs=0.01)
    assert dark["contrast"] == pytest.approx(first["contrast"] / 2, abs=0.01)
    large = _figures(np.tile(sharp, (1, 20, 20)))
    assert large["blur"] == pytest.approx(first["blur"], abs=0.2), "the centre, not shrunk"
    assert set(watched.of_picture(np.zeros((3, 2, 2), np.uint8))) == {"brightness", "contrast"}


def test_embeddings_that_move_change_their_directions() -> None:
    draw = np.random.default_rng(2)
    first = draw.normal(size=384)
    found, same = watched.of_embedding(first.tolist()), watched.of_embedding((2 * first).tolist())
    assert len(found) == 4
    assert same == pytest.approx(found), "only the direction counts"
    assert all(0 <= float(value) <= 2 for value in found.values())
    assert watched.of_embedding(draw.normal(size=384).tolist()) != pytest.approx(found)
    assert watched.of_embedding([0.0, 0.0]) == {}


def test_only_finite_numbers_and_texts_of_bounded_length_are_kept() -> None:
    given_ = {"a": 1 / 3, "b": math.nan, "c": "x" * 999, "d": np.float32(2), "e": -math.inf}
    assert watched.cleaned(given_) == {"a": 0.3333333, "c": "x" * 200, "d": 2.0}


def test_a_detector_describes_the_picture_the_number_of_objects_and_the_best_one() -> None:
    reply = [{"cat": [0, 0, 1, 1], "score": 0.6}, {"score": 0.9, "dog": [0, 0, 1, 1]}]
    item = torch.full((3, 30, 40), 255, dtype=torch.uint8)
    handler, request = ObjectDetectorHandler(), Request(picture(255, 255, 255))
    found = handler.watch(request, item, reply)
    assert (found["objects"], found["class"], found["confidence"]) == (2, "dog", 0.9)
    assert (found["width"], found["brightness"]) == (40, pytest.approx(1))
    assert handler.watch(request, item, [])["class"] == "none"


def test_texts_are_described_by_length_and_unknown_words() -> None:
    handler = TextClassifierHandler()
    handler.vocabulary, handler.limits = {"good": 1, "film": 2}, type("Limits", (), {"characters": 100})()
    found = handler.watch(Request("Good film, zyx zyx"), torch.tensor([1, 2]), {"pos": 0.75, "neg": 0.25})
    assert (found["characters"], found["tokens"], found["unknown"], found["class"]) == (18, 4, 0.5, "pos")


def test_embedded_texts_are_described_by_tokens_unknown_ones_and_direction() -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4}
    handler = TextEmbeddingHandler()
    handler.limits, handler.unknown = type("Limits", (), {"characters": 100})(), 1
    pieces = WordPieces(vocabulary, max_tokens=16, lower_case=True)
    item = torch.tensor(pieces.numbers_of("good zyx"))
    found = handler.watch(Request("good zyx"), item, [0.1, 0.2, 0.3])
    assert (found["characters"], found["tokens"], found["unknown"]) == (8, 4, 0.25)
    assert "direction_4" in found


def test_a_sound_is_described_by_length_loudness_and_speech() -> None:
    reply = {"duration_s": 2.0, "probability": 0.8, "speech": [{"start_s": 0.5, "end_s": 1.0}]}
    found = VoiceActivityHandler().watch(Request(b""), torch.full((32_000,), 0.5), reply)
    assert found == {"duration_s": 2.0, "loudness": 0.5, "confidence": 0.8, "speech": 0.25}


def test_each_input_of_a_row_is_described() -> None:
    handler = TensorHandler()
    handler.inputs = []
    found = handler.watch(Request([1]), (torch.tensor([1.0, math.nan], dtype=torch.bfloat16),), [0.5])
    assert found == {"missing": 0.5, "mean": 1.0, "std": 0.0}
    handler.inputs = [type("Input", (), {"name": name})() for name in ("ages", "sizes")]
    both = handler.watch(Request({}), (torch.tensor([1]), torch.tensor([3, 5])), [0.5])
    assert (both["ages.mean"], both["sizes.std"]) == (1.0, 1.0)
