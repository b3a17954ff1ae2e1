"""How texts are compared: what is left of them when the way they are written does not count, and their words."""

import re
import unicodedata
from functools import lru_cache

import Stemmer

WORD = re.compile(r"[^\W_]+")
_REMEMBERED = 1 << 16


def fold(text: str) -> str:
    """What is left of a text when case, accents, widths and ligatures do not count (Unicode NFKD, case folding)."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


def words(text: str) -> list[str]:
    """Words of letters and digits, folded, in order, by their English stem: ``Apples`` and ``apple`` are one."""
    return [_stem(word) for word in WORD.findall(fold(text))]


@lru_cache(_REMEMBERED)
def _stem(word: str) -> str:
    return str(Stemmer.Stemmer("english").stemWord(word))  # a stemmer is one thread's
