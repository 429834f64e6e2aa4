"""Split text of any script into words, for ROUGE-L, near-duplicates, retrieval and comparisons of answers.

A word is a run of letters and digits with their combining marks. In scripts that put no spaces between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese ...) each letter with its marks is a word, because finding words
there needs a dictionary.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

# Blocks of scripts without spaces between words, first and last character (Unicode 16, Blocks.txt).
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x2E80, 0x312F),  # Han radicals, Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),  # Bopomofo and Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x16FE0, 0x18DFF),  # Han marks, Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # Kana extensions, Nushu
    (0x20000, 0x3FFFF),  # Han
)
# Soft hyphen and zero-width (non-)joiner: they occur within words and are not seen.
INVISIBLE = "\u00ad\u200c\u200d"
ASCII_WORD = re.compile(r"[a-z0-9]+")
ASCII_WORD_OR_DECIMAL = re.compile(r"[a-z0-9]+(?:\.[0-9]+)?")
# Matched against `classify_characters`: a letter of a script without spaces, or a run of other letters.
WORD = re.compile(r"lm*|(?:[wd]m*)+")
WORD_OR_DECIMAL = re.compile(r"lm*|(?:[wd]m*)+(?:\.d+)?")
# Pieces that, joined, are the text again: words as in Python (`_` is part of one), white space, and single
# other characters.
TOKEN = re.compile(r"lm*|(?:[wd_]m*)+|s+|.m*")


class Word(NamedTuple):
    text: str
    start: int  # in the folded text
    end: int
    is_letter: bool  # a single letter of a script without spaces


def split_words(text: str, decimals: bool = False) -> list[str]:
    """Split a text into its words, in order, composed (NFC) and case-folded.

    Args:
        text: the text.
        decimals: whether a point and the digits after it belong to a word, so that 3.5 is one word, not two.
    """
    if text.isascii():
        return (ASCII_WORD_OR_DECIMAL if decimals else ASCII_WORD).findall(text.lower())
    return [word.text for word in find_words(text, WORD_OR_DECIMAL if decimals else WORD)]


def split_terms(text: str) -> list[str]:
    """Split a text into words, or pairs of letters where its script has no spaces, as search engines do.

    A single letter would say little: a long Chinese text has most of the common ones.
    """
    if text.isascii():
        return split_words(text)
    terms: list[str] = []
    alone = True  # whether the word is in no pair with the one before
    words = list(find_words(text))
    for word, following in zip_longest(words, words[1:]):
        if following and word.is_letter and following.is_letter and word.end == following.start:
            terms.append(word.text + following.text)
            alone = False
            continue
        if alone or not word.is_letter:
            terms.append(word.text)
        alone = True
    return terms


def split_tokens(text: str) -> list[str]:
    """Split a text into words, white space and single other characters; joined, they are the text again."""
    return [text[match.start() : match.end()] for match in TOKEN.finditer(classify_characters(text))]


def find_words(text: str, pattern: re.Pattern[str] = WORD) -> Iterator[Word]:
    text = fold_text(text)
    for match in pattern.finditer(classify_characters(text)):
        yield Word(text[match.start() : match.end()], match.start(), match.end(), match[0][0] == "l")


def fold_text(text: str) -> str:
    visible = text.translate(dict.fromkeys(map(ord, INVISIBLE)))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", visible).casefold())


def classify_characters(text: str) -> str:
    """Replace each character of a text by the letter of its kind, see `classify_character`."""
    return text.translate(CHARACTER_KINDS)


def classify_character(character: str) -> str:
    """Return the kind of a character as one letter.

    w is a letter, l a letter of a script without spaces, d a digit, m a combining mark, s white space, o any
    other; . and _ stand for themselves.
    """
    if character in "._":
        return character
    if character.isspace():
        return "s"
    if character in INVISIBLE or unicodedata.category(character).startswith("M"):
        return "m"
    if not character.isalnum():
        return "o"
    if character.isdecimal():
        return "d"
    return "l" if any(first <= ord(character) <= last for first, last in WITHOUT_SPACES) else "w"


class CharacterKinds(dict[int, str]):
    """The kind of each character, computed when it is first needed."""

    def __missing__(self, code: int) -> str:
        self[code] = kind = classify_character(chr(code))
        return kind


CHARACTER_KINDS = CharacterKinds()
