"""Words in any script: English as in rouge-score, others by Unicode's character classes."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.tokenize import tokenize

from loratune.data.words import fold_text, split_terms, split_tokens, split_words

# Letters, marks, digits, spaces and signs of many scripts: text() alone seldom joins what belongs together.
MIXED = (
    st.text("aZé_ 9-.\n\u0301\u00ad\u200d\u200bße\u0130हिन्दीภาษาไทย๑漢字かなカナ한국어မြန်မာខ្មែរلغة👍🏽\ud800")
    | st.text()
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, 3.5 times!", ["don", "t", "stop", "3", "5", "times"]),
        ("snake_case", ["snake", "case"]),
        ("Die Tür ist GROẞ.", ["die", "tür", "ist", "gross"]),
        ("Tu\u0308r", ["tür"]),  # decomposed
        ("हिन्दी में जवाब", ["हिन्दी", "में", "जवाब"]),  # vowel signs are combining marks
        ("مُحَمَّد قال", ["مُحَمَّد", "قال"]),
        ("\u0645\u06cc\u200c\u062e", ["\u0645\u06cc\u062e"]),  # one word with a zero-width non-joiner in it
        ("Wort\u00adtrennung", ["worttrennung"]),
        ("天空是蓝色的。", ["天", "空", "是", "蓝", "色", "的"]),
        ("GPT-4很好", ["gpt", "4", "很", "好"]),
        ("コーヒーを3杯", ["コ", "ー", "ヒ", "ー", "を", "3", "杯"]),
        ("ภาษาไทยดี ๑๒", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย", "ดี", "๑๒"]),
        ("한국어 답변", ["한국어", "답변"]),  # Korean has spaces
        ("Это ответ", ["это", "ответ"]),
        ("👍 \u0301 -", []),
        ("", []),
    ],
)
def test_words_of_examples(text, expected):
    assert split_words(text) == [unicodedata.normalize("NFC", word) for word in expected]


@given(st.text(st.characters(max_codepoint=127)) | st.text("ab_Z 9-\n"))
@example("a_b\x1f\x7fC")
def test_words_of_ascii_text_are_those_of_rouge_score(text):
    assert split_words(text) == split_terms(text) == tokenize(text, stemmer=None)


@given(st.text(st.characters(max_codepoint=127)) | st.text("ab.. 9-\n"))
def test_ascii_decimals_are_one_word(text):
    assert split_words(text, decimals=True) == re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", text.lower())


def test_decimals_of_any_script_are_one_word():
    assert split_words("वर्ष ३.५ / 3.5% 天3.5", decimals=True) == ["वर्ष", "३.५", "3.5", "天", "3.5"]
    assert split_words("वर्ष ३.५. ", decimals=False) == ["वर्ष", "३", "५"]


@given(MIXED)
def test_words_are_case_and_composition_insensitive(text):
    assert (
        split_words(text)
        == split_words(unicodedata.normalize("NFD", text))
        == split_words(unicodedata.normalize("NFC", text))
    )
    assert split_words(text) == split_words(text.casefold())
    assert split_words(" ".join(split_words(text))) == split_words(text)


@given(MIXED, MIXED)
def test_space_ends_every_word(first, second):
    assert split_words(f"{first} {second}") == split_words(first) + split_words(second)


@given(MIXED)
def test_each_letter_and_digit_is_in_one_word(text):
    def letters(text):
        return [character for character in text if character.isalnum()]

    assert letters("".join(split_words(text))) == letters(fold_text(text))


@given(MIXED)
def test_joined_tokens_are_the_text(text):
    assert "".join(split_tokens(text)) == text


@given(st.text(st.characters(max_codepoint=127)) | st.text("ab_Z 9-\n"))
def test_ascii_tokens_are_words_spaces_and_signs(text):
    assert split_tokens(text) == re.findall(r"\w+|\s+|[^\w\s]", text)


def test_terms_are_letter_pairs_in_scripts_without_spaces():
    assert split_terms("天空是蓝色 GPT-4很好 山") == [
        "天空",
        "空是",
        "是蓝",
        "蓝色",
        "gpt",
        "4",
        "很好",
        "山",
    ]
    assert split_terms("हिन्दी में") == split_words("हिन्दी में")
    assert split_terms("山、水") == ["山", "水"]


@given(MIXED)
def test_terms_contain_every_word(text):
    assert {
        word for word in split_words(text) if not any(word in term for term in split_terms(text))
    } == set()
    assert set("".join(split_terms(text))) == set("".join(split_words(text)))
