"""WordPiece, the tokenizer of BERT and its kin: text to pieces of words, by the ``vocab.txt`` of the model.

The pieces are those of the library ``tokenizers`` with BERT's uncased settings, but for two things: names of special
tokens in a text, such as ``[SEP]``, are ordinary characters here, so that a request cannot forge the model's markers;
and characters are judged by Python's Unicode tables, which know some newer marks of punctuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping

MAX_WORD = 100  # longer words are unknown, as in the original
MOST_CHARACTERS_KNOWN = 50_000  # in each table; a few megabytes
# Blocks of Chinese, Japanese and Korean ideographs, each of which is a word.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPieces:
    """Cuts text into the numbers of its pieces, between ``[CLS]`` and ``[SEP]``."""

    def __init__(self, vocabulary: Mapping[str, int], *, max_tokens: int, lower_case: bool = True) -> None:
        self._vocabulary = vocabulary
        self._room = max_tokens - 2
        self._lower_case = lower_case
        self._begin, self._end, self._unknown = (vocabulary[token] for token in ("[CLS]", "[SEP]", "[UNK]"))

    def numbers_of(self, text: str) -> list[int]:
        """Return the numbers of the pieces of a text; of a long one, those of its beginning."""
        numbers: list[int] = []
        # Each word gives one piece at least.
        for word in words_of(text, lower_case=self._lower_case, most=self._room):
            numbers += self._pieces_of(word)
            if len(numbers) >= self._room:
                break
        return [self._begin, *numbers[: self._room], self._end]

    def _pieces_of(self, word: str) -> list[int]:
        """Cut a word into the longest pieces that the vocabulary has, from its beginning on."""
        if len(word) > MAX_WORD:
            return [self._unknown]
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                number = self._vocabulary.get(("##" if start else "") + word[start:end])
                if number is not None:
                    break
            else:
                return [self._unknown]
            pieces.append(number)
            start = end
        return pieces


class _Table(dict[int, str]):
    """What ``str.translate`` puts for each character: found out once, because it is asked for each in every text."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        super().__init__()
        self._replacement = replacement

    def __missing__(self, code: int) -> str:
        if len(self) >= MOST_CHARACTERS_KNOWN:
            self.clear()
        self[code] = self._replacement(chr(code))
        return self[code]


def words_of(text: str, *, lower_case: bool, most: int = -1) -> list[str]:
    """Return words, marks of punctuation and ideographs, one by one; lower case goes with losing the accents.

    Args:
        text: what to cut.
        lower_case: whether the model knows small letters only.
        most: how many to return, of the beginning; -1: all.
    """
    text = text.translate(_SPACED)
    if lower_case:
        text = unicodedata.normalize("NFD", text).translate(_WITHOUT_ACCENTS).lower()
    words = text.translate(_PUNCTUATION_APART).split(maxsplit=most)
    # What is left of the text stands behind the last one.
    return words if most < 0 else words[:most]


def _spaced(character: str) -> str:
    """Return a character, spaced where it is a word by itself; a space for any white one; nothing for a control."""
    if character in "\t\n\r":
        return " "
    if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    if character.isspace():
        return " "
    return f" {character} " if _is_ideograph(ord(character)) else character


def _is_ideograph(code: int) -> bool:
    return code >= 0x3400 and any(first <= code <= last for first, last in _IDEOGRAPHS)


def _is_punctuation(character: str) -> bool:
    # Of ASCII, also signs that Unicode does not count as punctuation, such as "$" and "~".
    if character.isascii():
        return character.isprintable() and not character.isalnum()
    return unicodedata.category(character).startswith("P")


_SPACED = _Table(_spaced)
_WITHOUT_ACCENTS = _Table(lambda character: "" if unicodedata.category(character) == "Mn" else character)
_PUNCTUATION_APART = _Table(lambda character: f" {character} " if _is_punctuation(character) else character)
