"""What the items of one request may be together: characters, pixels, seconds; and texts are read in linear time."""

from __future__ import annotations

import base64
import json
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marsmith_handler.errors import ItemError
from marsmith_handler.image.handler import check_pixels
from marsmith_handler.request import Request
from marsmith_handler.text import english_words, word_pieces
from marsmith_handler.text.requests import MAX_CHARACTERS, TextLimits
from marsmith_handler.text.word_pieces import MAX_WORD, WordPieces
from support.detectors import Corners
from support.embedding_models import PIECES, MeanNumber
from support.handler_fixtures import Worker, classifier_folder, write_manifest, write_model
from support.huge_requests import largest_picture
from support.pictures import picture
from support.sounds import Loudness, noise, wav
from support.text_models import LABELS, WORDS, BagOfWords

JSON_TYPE = "application/json"


def packed(items: list[bytes], envelope: str) -> tuple[Any, dict[str, str]]:
    """Put items into an envelope: what ``Worker.send`` takes, and the headers."""
    coded = [{"b64": base64.b64encode(item).decode()} for item in items]
    v2 = {"name": "x", "shape": [len(items)], "datatype": "BYTES"}
    if envelope == "form":
        return [(f"f{number}", "application/octet-stream", item) for number, item in enumerate(items)], {}
    if envelope == "v2 binary":
        behind = b"".join(len(item).to_bytes(4, "little") + item for item in items)
        head = json.dumps({"inputs": [{**v2, "parameters": {"binary_data_size": len(behind)}}]}).encode()
        return head + behind, {"inference-header-content-length": str(len(head))}
    bodies = {
        "list": coded,
        "v1": {"instances": coded},
        "v2": {"inputs": [{**v2, "data": coded}]},
        "v2 inputs": {"inputs": [{**v2, "shape": [1], "data": [one]} for one in coded]},
    }
    return (json.dumps(bodies[envelope]).encode(), JSON_TYPE), {}


ENVELOPES = ["form", "v2 binary", "list", "v1", "v2", "v2 inputs"]


def archive(folder: Path, handler: str, model: torch.nn.Module, settings: dict[str, Any], **files: str) -> Worker:
    write_model(folder, model)
    write_manifest(folder, handler)
    for name, content in files.items():
        (folder / name.replace("_txt", ".txt").replace("_json", ".json")).write_text(content, encoding="utf-8")
    (folder / "model-config.yaml").write_text(json.dumps({"handler": {"warm_up_s": 0.001, **settings}}))
    return Worker(folder, handler)


def classifier(folder: Path, **settings: Any) -> Worker:
    files = {
        "labels_json": json.dumps(LABELS),
        "words_json": json.dumps({word: number for number, word in enumerate(WORDS)}),
    }
    both = {"labels": "labels.json", "vocabulary": "words.json"}
    return archive(folder, "text_classifier_handler.py", BagOfWords(), {**both, **settings}, **files)


def embedder(folder: Path, **settings: Any) -> Worker:
    return archive(folder, "text_embedding_handler.py", MeanNumber(), settings, vocab_txt="\n".join(PIECES))


def pictures(folder: Path, **settings: Any) -> Worker:
    return Worker(classifier_folder(folder, **settings), "image_classifier_handler.py")


def detector(folder: Path, **settings: Any) -> Worker:
    return archive(folder, "object_detector_handler.py", Corners(), settings)


def voices(folder: Path, **settings: Any) -> Worker:
    return archive(folder, "voice_activity_handler.py", Loudness(), settings)


# Of each handler: one item, how much of what is counted it is, and the setting that bounds it.
KINDS: dict[str, tuple[Callable[..., Worker], bytes, float, str]] = {
    "classifier": (classifier, "good é".encode(), 6, "max_request_characters"),
    "embedder": (embedder, "a é".encode(), 3, "max_request_characters"),
    "pictures": (pictures, picture(200, 0, 0, size=(40, 30)), 1200, "max_request_pixels"),
    "detector": (detector, picture(200, 0, 0, size=(40, 30)), 1200, "max_request_pixels"),
    "voices": (voices, wav(noise(0.5, 0.3)), 0.5, "max_request_duration_s"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_are_too_much_together_are_refused_before_any_is_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, item, amount, setting = KINDS[kind]
    worker = make(tmp_path / "model", **{setting: 4 * amount})
    handler = worker.service._entry_point.__self__
    decoded: list[Any] = []
    decode = handler.decode
    monkeypatch.setattr(handler, "decode", lambda request: (decoded.append(request), decode(request))[1])
    for envelope in ENVELOPES:
        for count, status in ((4, 200), (5, 413)):
            decoded.clear()
            request, headers = packed([item] * count, envelope)
            (reply,) = worker.send(request, headers=headers)
            assert (reply.status, len(decoded)) == (status, 4 if status == 200 else 0), (envelope, count, reply.body)
            if status == 413:
                assert f"{setting} ({4 * amount:g})" in reply.json()["message"]
                # No single one is to blame.
                assert not reply.json()["message"].startswith("item ")


@pytest.mark.parametrize("kind", KINDS)
def test_the_neighbours_of_too_much_are_answered_and_a_broken_item_is_still_named(kind: str, tmp_path: Path) -> None:
    make, item, amount, setting = KINDS[kind]
    worker = make(tmp_path / "model", **{setting: 4 * amount})
    first, huge, last = worker.send(item, packed([item] * 5, "list")[0], item)
    assert (first.status, huge.status, last.status) == (200, 413, 200)
    assert first.body == last.body
    (broken,) = worker.send(packed([item, b"\xff\xfe", item], "list")[0])
    assert (400 <= broken.status < 500, broken.json()["message"][:12]) == (True, "item 2 of 3:")


def test_one_item_alone_is_bound_by_its_own_setting(tmp_path: Path) -> None:
    (reply,) = classifier(tmp_path / "model", max_characters=10, max_request_characters=5).send(b"good film")
    assert reply.status == 200
    (reply,) = classifier(tmp_path / "other", max_characters=10).send(b"good films!")
    assert "max_characters (10)" in reply.json()["message"]


def test_the_default_has_room_for_as_many_texts_as_a_request_may_hold() -> None:
    for config in ({}, {"max_characters": 2000}):
        TextLimits.of(config).check_together([Request("é" * 1900)] * 256)
    limits = TextLimits.of({"max_characters": 10**6})
    assert (limits.characters, limits.together) == (10**6, 10**6)


def test_the_deadline_of_a_request_blames_no_item(tmp_path: Path) -> None:
    request, headers = packed([b"good film"] * 2, "list")
    (reply,) = classifier(tmp_path / "model").send(request, headers={**headers, "x-deadline-ms": "1"})
    assert (reply.status, reply.json()["message"].startswith("the deadline")) == (504, True)


# Text in linear time ------------------------------------------------------------------------------------------------

MARKS = "a" + "\u0300\u0316" * (MAX_CHARACTERS // 2 - 1)


@pytest.mark.parametrize(
    ("module", "read"),
    [
        (english_words, english_words.words_of),
        (word_pieces, lambda text: word_pieces.words_of(text, lower_case=True)),
        (word_pieces, lambda text: word_pieces.words_of(text, lower_case=False)),
    ],
)
def test_marks_that_follow_each_other_are_not_sorted(
    module: Any, read: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched:
        category = staticmethod(unicodedata.category)
        longest = 0

        def normalize(self, form: Any, text: str) -> str:
            # Python sorts the marks in quadratic time: 8 seconds for this text.
            Watched.longest = max(Watched.longest, len(text))
            return unicodedata.normalize(form, text[:3])

    monkeypatch.setattr(module, "unicodedata", Watched())
    read("".join(map(chr, range(0x300, 0x340))) + MARKS)
    assert Watched.longest <= 3


def in_order(text: str) -> bool:
    """Tell whether what is left without accents has an order of its own: some of music's signs have not."""
    return not any(unicodedata.combining(mark) and unicodedata.category(mark) != "Mn" for mark in text)


@given(st.text(max_size=40) | st.text("aÅ\ufb01\u1e9b\u0323\u0300\u0316\uac00İ\u0391\u03a3.' -", max_size=20))
def test_characters_one_by_one_give_what_the_whole_text_gives(text: str) -> None:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    assert text.translate(english_words._PLAIN) == plain.translate(dict.fromkeys(map(ord, string.punctuation))).lower()
    if in_order(unicodedata.normalize("NFD", text)):
        spaced = text.translate(word_pieces._SPACED)
        kept = "".join(mark for mark in unicodedata.normalize("NFD", spaced) if unicodedata.category(mark) != "Mn")
        assert text.translate(word_pieces._SPACED_WITHOUT_ACCENTS) == kept


class Counting(dict[str, Any]):
    asked = 0

    def __contains__(self, key: object) -> bool:
        Counting.asked += 1
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        Counting.asked += 1
        return super().get(key, default)


def greedy(vocabulary: dict[str, int], word: str) -> list[int]:
    """The definition: from the beginning on, the longest piece that there is."""
    found, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        pieces = (vocabulary.get(("##" if start else "") + word[start:end]) for end in ends)
        end, number = next(((end, one) for end, one in zip(ends, pieces, strict=True) if one is not None), (0, None))
        if number is None:
            return [vocabulary["[UNK]"]]
        found.append(number)
        start = end
    return found


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@given(st.lists(st.text("ab#", min_size=1, max_size=5)), st.text("abc", min_size=1, max_size=12))
def test_pieces_are_the_longest_ones(tokens: list[str], word: str) -> None:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *tokens, *(f"##{one}" for one in tokens)])}
    pieces = WordPieces(vocabulary, max_tokens=64)
    assert pieces.numbers_of(word) == [vocabulary["[CLS]"], *greedy(vocabulary, word), vocabulary["[SEP]"]]


def test_a_word_costs_no_more_than_its_letters() -> None:
    pieces = WordPieces({token: number for number, token in enumerate([*SPECIAL, "a", "##a", "##aa"])}, max_tokens=256)
    pieces._known = Counting(pieces._known)
    Counting.asked = 0
    word = "a" * (MAX_WORD - 1) + "z"
    assert pieces.numbers_of(word) == [2, 1, 3]
    # Of every end from every beginning, it would be 5,000.
    assert Counting.asked <= 3 * MAX_WORD


def test_no_table_of_characters_grows_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from marsmith_handler.text import character_table

    monkeypatch.setattr(character_table, "MOST_CHARACTERS_KNOWN", 50)
    table = character_table.CharacterTable(str.upper)
    for first in range(0, 2000, 40):
        text = "".join(map(chr, range(first, first + 40)))
        assert text.translate(table) == "".join(map(str.upper, text))
    assert len(table) <= 50


def test_pictures_of_one_request_have_no_more_pixels_than_one_of_their_format_may_have() -> None:
    png, jpeg = largest_picture("PNG", "RGB"), largest_picture("JPEG", "RGB")

    def check(*bodies: bytes, **limits: int | None) -> None:
        requests: Any = [SimpleNamespace(as_bytes=lambda body=body: body) for body in bodies]
        check_pixels(requests, **{"max_pixels": None, "together": None} | limits)

    check(png)
    check(jpeg, jpeg, jpeg, jpeg)
    with pytest.raises(ItemError, match=r"max_request_pixels \(5e\+07\)"):
        check(png, png)
    with pytest.raises(ItemError, match="max_request_pixels"):
        check(*[jpeg] * 5)
    # A limit that is set counts pixels as they are.
    check(png, png, max_pixels=20_000_000)
    with pytest.raises(ItemError, match="max_request_pixels"):
        check(png, png, together=20_000_000)
