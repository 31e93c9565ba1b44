"""English text to words, exactly as TorchServe's own text classifier cleans it, because models are trained on them.

Tags, entities, accents and punctuation are removed, and contractions are expanded. Three errors of the original are
kept, because models are trained with them: contractions are found inside longer words, "ain't" becomes "as not", and
the second half of a double one stays ("couldn't've" becomes "could notve").
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator

from marsmith_handler.text.character_table import CharacterTable

_ENTITY = r"&(?:[a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});"
_ENTITIES = re.compile(_ENTITY)
_TAGS_AND_ENTITIES = re.compile(f"<.*?>|{_ENTITY}")
_ENDINGS = {
    "n't": ("not", "are could did does do had has have is may might must need ought should was were would"),
    "'d": ("would", "he i it she that there they we you"),
    "'ll": ("will", "he how i it she they we what who you"),
    "'m": ("am", "i"),
    "'re": ("are", "they we what you"),
    "'s": ("is", "he how it she that there what when where who why"),
    "'ve": ("have", "could i might must should so they to we what when where who why will would you"),
}
_CONTRACTIONS = {
    **{stem + ending: f"{stem} {word}" for ending, (word, stems) in _ENDINGS.items() for stem in stems.split()},
    "ain't": "as not",
    "can't": "cannot",
    "shan't": "shall not",
    "sha'n't": "shall not",
    "won't": "will not",
    "'cause": "ecause",
    "how'd": "how did",
    "where'd": "where did",
    "let's": "let us",
    "so's": "so as",
    "ma'am": "madam",
    "o'clock": "of the clock",
    "y'all": "you all",
}
_CONTRACTED = re.compile("|".join(re.escape(contraction) for contraction in _CONTRACTIONS))


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case ASCII."""
    text = "\n".join(_without_tags(line) for line in text.split("\n")).lower()
    text = _CONTRACTED.sub(lambda found: _CONTRACTIONS[found[0]], text)
    return text.translate(_PLAIN).split()


def ngrams_of(words: list[str], longest: int) -> Iterator[str]:
    """Yield the words, then all pairs of consecutive words, and so on up to ``longest`` words."""
    for length in range(1, longest + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


def _without_tags(line: str) -> str:
    # After the last ">" no tag can end: a search from every "<" there would take quadratic time.
    head, end, tail = line.rpartition(">")
    return _TAGS_AND_ENTITIES.sub("", head + end) + _ENTITIES.sub("", tail)


def _plain(character: str) -> str:
    """Return the ASCII letters and digits of a character, in lower case, without punctuation."""
    decomposed = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return "".join(part for part in decomposed if part not in string.punctuation).lower()


_PLAIN = CharacterTable(_plain)
