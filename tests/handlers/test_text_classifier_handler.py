from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith_handler.text.english_words import ngrams_of, words_of
from support.handler_fixtures import Worker, write_manifest, write_model
from support.text_models import LABELS, WORDS, BagOfWords

HANDLER = "text_classifier_handler.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_model(folder, BagOfWords())
    write_manifest(folder, HANDLER)
    (folder / "index_to_name.json").write_text(json.dumps(LABELS), encoding="utf-8")
    # A Counter gives 0, the number of <unk>, for what it lacks: the stock handler asks for every token.
    torch.save(Counter({word: number for number, word in enumerate(WORDS)}), folder / "source_vocab.pt")
    return configure(folder)


def configure(folder: Path, **handler: Any) -> Path:
    (folder / "model-config.yaml").write_text(json.dumps({"minWorkers": 1, "handler": handler}), encoding="utf-8")
    return folder


TEXTS = ["A good film!", "<b>Bad</b> film &amp; no more", "I don't like naïve films; couldn't've", "ain't 'cause"]


@pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax:UserWarning")
def test_the_stock_handler_answers_the_same_on_the_same_archive(folder: Path) -> None:
    from ts.torch_handler.text_classifier import TextClassifier

    from marsmith.runtime.fake_context import FakeContext

    stock = TextClassifier()
    stock.initialize(FakeContext(folder))
    replies = Worker(folder, HANDLER).send(*[text.encode() for text in TEXTS])
    for text, reply in zip(TEXTS, replies, strict=True):
        # Stock answers the first request of a batch only.
        with torch.inference_mode():
            (wanted,) = stock.postprocess(stock.inference(stock.preprocess([{"body": text}])))
        assert list(reply.json()) == list(wanted) == list(LABELS.values())
        assert reply.json() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_words_and_ngrams_are_those_of_the_stock_handler(seed: int) -> None:
    from ts.handler_utils.text_utils import ngrams_iterator
    from ts.torch_handler.contractions import CONTRACTION_MAP
    from ts.torch_handler.text_classifier import TextClassifier

    stock = TextClassifier()

    def stock_words(text: str) -> list[str]:
        text = stock._expand_contractions(stock._remove_html_tags(text).lower())
        words: list[str] = stock._tokenize(stock._remove_punctuation(stock._remove_accented_characters(text)))
        return words

    rng = random.Random(seed)
    odd = [
        "<br />",
        "<a\nb>",
        ">",
        "<",
        "&#233;",
        "&x;",
        "ﬁ",
        "É",
        "İ",
        "\u210c",
        "—",
        "\u3000",
        "\x1c",
        ".",
        "'",
        " ",
        "\n",
    ]
    parts = [*CONTRACTION_MAP, *(word.upper() for word in CONTRACTION_MAP), *odd, "ab"]
    texts = [*CONTRACTION_MAP, *("".join(rng.choices(parts, k=12)) for _ in range(1500))]
    for text in texts:
        words = stock_words(text)
        assert words_of(text) == words, text
        assert list(ngrams_of(words, 2)) == list(ngrams_iterator(words, 2))


@given(st.text(max_size=30))
@settings(max_examples=100)
def test_words_are_lower_case_ascii_without_punctuation(text: str) -> None:
    assert all(word.isascii() and word.isalnum() and word == word.lower() for word in _printable(words_of(text)))


def _printable(words: list[str]) -> list[str]:
    return ["".join(filter(str.isprintable, word)) or "x" for word in words]


def test_brackets_that_open_and_never_close_take_no_quadratic_time() -> None:
    start = time.process_time()
    for text in ("<" * 100_000, "<\n" * 50_000 + ">", "&" * 100_000, "&a" * 50_000, "'" * 100_000):
        words_of(text)
    # Quadratic time would be minutes.
    assert time.process_time() - start < 20


def test_a_batch_is_answered_as_its_texts_alone(folder: Path) -> None:
    worker = Worker(folder, HANDLER)
    alone = [worker.send(text.encode())[0].json() for text in TEXTS]
    together = [reply.json() for reply in worker.send(*[text.encode() for text in TEXTS])]
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
        assert sum(one.values()) == pytest.approx(1)


def test_every_way_of_sending_a_text_gives_the_same_answer(folder: Path) -> None:
    worker = Worker(folder, HANDLER)
    ways = [
        b"good film",
        (b"good film", "text/plain; charset=utf-8"),
        (b'{"data": "good film"}', "application/json"),
        [("data", "text/plain", b"good film")],
        (b'{"b64": "Z29vZCBmaWxt"}', "application/json"),
    ]
    expected = worker.send(ways[0])[0].body
    for way in ways:
        assert worker.send(way)[0].body == expected, way
    several, v1 = worker.send(b'["good film", "bad film"]', b'{"instances": [{"data": "good film"}]}')
    assert several.json()[0] == v1.json()["predictions"][0] == json.loads(expected)
    assert len(several.json()) == 2


def test_bad_texts_get_their_own_4xx_and_their_neighbours_their_answers(folder: Path) -> None:
    worker = Worker(configure(folder, max_characters=1000), HANDLER)
    expected = worker.send(b"good film")[0].json()
    bad = [b"", b"\xff\xfe\x00", b" \n ", b"x" * 1001, (b'{"data": 7}', "application/json"), b"!?!", b'{"a": "b"}']
    replies = worker.send(b"good film", *bad, b"good film")
    assert [reply.status for reply in replies] == [200, 400, 400, 422, 413, 415, 422, 415, 200]
    assert all(reply.json().keys() == {"code", "type", "message", "request_id"} for reply in replies[1:-1])
    assert replies[0].json() == pytest.approx(expected, abs=1e-6)
    assert replies[-1].json() == pytest.approx(expected, abs=1e-6)


def test_a_vocabulary_without_an_unknown_token_leaves_unknown_words_out(folder: Path) -> None:
    (folder / "words.json").write_text(json.dumps({"good": 1, "film": 3}), encoding="utf-8")
    worker = Worker(configure(folder, vocabulary="words.json", ngrams=1), HANDLER)
    plain, strange, unknown = worker.send(b"good film", b"good strange film", b"strange")
    assert plain.json() == strange.json()
    assert [unknown.status, unknown.json()["type"]] == [422, "UnprocessableContent"]


class Vocab:
    """What a pickled vocabulary of torchtext is to a worker: an object of some class."""


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.json", None, "has no missing.json"),
        ("words.json", b"[1, 2]", "holds no mapping"),
        ("words.json", b"{", "holds no mapping"),
        ("pickled.pt", "pickled", "write its get_stoi"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused_at_load(folder: Path, name: str, content: Any, complaint: str) -> None:
    if content == "pickled":
        torch.save(Vocab(), folder / name)
    elif content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(RuntimeError, match=complaint):
        Worker(configure(folder, vocabulary=name), HANDLER)


def test_ngrams_come_shortest_first() -> None:
    assert list(ngrams_of(["a", "b", "c"], 3)) == ["a", "b", "c", "a b", "b c", "a b c"]
    assert list(itertools.islice(ngrams_of([], 2), 1)) == []
