"""WordPiece, the tokenizer of BERT and its kin: text to pieces of words, by the ``vocab.txt`` of the model.

The pieces are those of the library ``tokenizers`` with BERT's uncased settings, but for two things: names of special
tokens in a text, such as ``[SEP]``, are ordinary characters here, so that a request cannot forge the model's markers;
and characters are judged by Python's Unicode tables, which know some newer marks of punctuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping

MAX_WORD = 100  # longer words are unknown, as in the original
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
        for word in words_of(text, lower_case=self._lower_case):
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


def words_of(text: str, *, lower_case: bool) -> Iterator[str]:
    """Give words, marks of punctuation and ideographs, one by one; lower case goes with losing the accents."""
    text = "".join(_spaced(character) for character in text)
    if lower_case:
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn").lower()
    for run in text.split():
        yield from "".join(f" {c} " if _is_punctuation(c) else c for c in run).split()


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
