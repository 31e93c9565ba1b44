"""WordPiece, the tokenizer of BERT and similar models: text to pieces of words from the model's ``vocab.txt``.

The pieces are those of the library ``tokenizers`` with BERT's uncased settings, with two differences. Names of special
tokens in a text, such as ``[SEP]``, are ordinary characters here, so a request cannot insert the model's markers. And
characters are classified by Python's Unicode tables, which have some newer punctuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from marsmith_handler.text.character_table import CharacterTable

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
    """Converts text to the numbers of its pieces, between ``[CLS]`` and ``[SEP]``."""

    def __init__(self, vocabulary: Mapping[str, int], *, max_tokens: int, lower_case: bool = True) -> None:
        # Prefixes of pieces too, without a number: the search for a longer piece stops after them.
        self._known: dict[str, int | None] = dict.fromkeys(_beginnings(vocabulary))
        self._known.update(vocabulary)
        self._room = max_tokens - 2
        self._lower_case = lower_case
        self._begin, self._end, self._unknown = (vocabulary[token] for token in ("[CLS]", "[SEP]", "[UNK]"))

    def numbers_of(self, text: str) -> list[int]:
        """Return the numbers of the pieces of a text; of a long text, those of its beginning."""
        numbers: list[int] = []
        # Each word has at least one piece.
        for word in words_of(text, lower_case=self._lower_case, most=self._room):
            numbers += self._pieces_of(word)
            if len(numbers) >= self._room:
                break
        return [self._begin, *numbers[: self._room], self._end]

    def _pieces_of(self, word: str) -> list[int]:
        """Split a word into the longest pieces of the vocabulary, from its beginning."""
        if len(word) > MAX_WORD:
            return [self._unknown]
        pieces, start = [], 0
        while start < len(word):
            number, start = self._longest_piece(word, start)
            if number is None:
                return [self._unknown]
            pieces.append(number)
        return pieces

    def _longest_piece(self, word: str, start: int) -> tuple[int | None, int]:
        """Return the number of the longest piece that begins at ``start``, None if there is none, and its end."""
        mark, found, found_end = "##" if start else "", None, start
        for end in range(start + 1, len(word) + 1):
            piece = mark + word[start:end]
            if piece not in self._known:
                break
            if (number := self._known[piece]) is not None:
                found, found_end = number, end
        return found, found_end


def _beginnings(pieces: Iterable[str]) -> Iterator[str]:
    return (piece[:end] for piece in pieces for end in range(1, len(piece)))


def words_of(text: str, *, lower_case: bool, most: int = -1) -> list[str]:
    """Return words, punctuation marks and ideographs, one by one.

    Args:
        text: text to split.
        lower_case: whether to convert to lower case and remove accents.
        most: maximum number, from the beginning; -1: all.
    """
    text = text.translate(_SPACED_WITHOUT_ACCENTS).lower() if lower_case else text.translate(_SPACED)
    words = text.translate(_PUNCTUATION_APART).split(maxsplit=most)
    # The rest of the text follows the last one.
    return words if most < 0 else words[:most]


def _spaced(character: str) -> str:
    """Return a character, with spaces if it is a word; a space for white space; nothing for a control character."""
    if character in "\t\n\r":
        return " "
    category = unicodedata.category(character)
    if character == "\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
        return ""
    if character.isspace():
        return " "
    return f" {character} " if category in ("Lo", "Cn") and _is_ideograph(ord(character)) else character


def _spaced_without_accents(character: str) -> str:
    spaced = _spaced(character)
    decomposed = unicodedata.normalize("NFD", spaced)
    if len(decomposed) == 1:
        return "" if unicodedata.category(decomposed) == "Mn" else decomposed
    return "".join(part for part in decomposed if unicodedata.category(part) != "Mn")


def _is_ideograph(code: int) -> bool:
    return code >= 0x3400 and any(first <= code <= last for first, last in _IDEOGRAPHS)


def _is_punctuation(character: str) -> bool:
    # In ASCII, also signs that Unicode does not count as punctuation, such as "$" and "~".
    if character.isascii():
        return character.isprintable() and not character.isalnum()
    return unicodedata.category(character).startswith("P")


_SPACED = CharacterTable(_spaced)
_SPACED_WITHOUT_ACCENTS = CharacterTable(_spaced_without_accents)
_PUNCTUATION_APART = CharacterTable(lambda character: f" {character} " if _is_punctuation(character) else character)
