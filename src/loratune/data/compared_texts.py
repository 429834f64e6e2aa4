"""The texts by which records are compared, for duplicates, near-duplicates and equal openings."""

import hashlib
from typing import NamedTuple

from loratune.data.conversation import format_content, list_messages
from loratune.data.example import Record


def normalize_text(text: str) -> str:
    """Fold case and white space, in which duplicates may differ."""
    return " ".join(text.casefold().split())


def hash_content(record: Record) -> str:
    """Hash what duplicates have in common: the texts, or a conversation's roles, texts and calls."""
    texts = (
        [text for message in record.messages for text in (message["role"], format_content(message))]
        if record.messages
        else [record.instruction, record.input, record.output]
    )
    return hashlib.sha256("\0".join(map(normalize_text, texts)).encode()).hexdigest()


class ComparedTexts(NamedTuple):
    """The two texts by which records are compared."""

    question: str
    input: str  # "" if there is none


def get_compared_texts(record: Record) -> ComparedTexts:
    """Return what is compared: an instruction and its input, a conversation's first question and what follows
    up to its last answer, or a plain text.
    """
    if record.is_text:
        return ComparedTexts(record.output, "")
    if not record.messages:
        return ComparedTexts(record.instruction, record.input)
    spoken = [message for message in record.messages if message["role"] != "system"]
    return ComparedTexts(spoken[0]["content"], "\n".join(map(format_content, spoken[1:-1])))


def list_questions(record: Record) -> list[str]:
    """Return what the user says, normalised, in order; nothing for plain text."""
    if record.is_text:
        return []
    return [
        normalize_text(message["content"]) for message in list_messages(record) if message["role"] == "user"
    ]


def make_prompt_key(record: Record) -> str:
    return "\0".join(map(normalize_text, get_compared_texts(record)))


def strip_answer_format(instruction: str) -> str:
    """Remove a last line on the form of the answer, such as "Answer with a program." in FinQA's rows."""
    question, _, last = instruction.rstrip().rpartition("\n")
    return question if question and normalize_text(last).startswith("answer with ") else instruction
