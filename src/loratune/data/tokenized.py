"""Tokenised records: what became of each, without a token limit and with it."""

from collections.abc import Mapping
from dataclasses import dataclass

from loratune.data.example import Example, Record

# What became of rows. `turns_cut` counts turns, and `answers` and `answers_cut` the answers of conversations
# that are learned, and those that are lost with their turns; everything else counts rows.
COUNT_NAMES = (
    "rows",
    "inputs_cut",
    "turns_cut",
    "responses_cut",
    "dropped",
    "end_markers_removed",
    "answers",
    "answers_cut",
    "rows_split",
)


@dataclass(frozen=True)
class TokenizedExample:
    """An example without a token limit, and as it is truncated."""

    untruncated: Example  # its response is empty where the output is only an end marker
    example: Example | None  # as the model sees it; None where it is dropped
    input_cut: bool = False
    turns_cut: int = 0
    response_tokens_cut: int = 0  # end-of-text included


@dataclass(frozen=True)
class TokenizedRecord:
    """A record's examples: one, or several of a conversation or of a long text."""

    record: Record
    examples: list[TokenizedExample]
    answers: int = 0  # of a conversation, that are to be learned
    end_markers: bool = False  # whether an output ended with an end marker

    def count(self) -> dict[str, int]:
        """Count what became of the record, by `COUNT_NAMES`."""
        kept = [one.example for one in self.examples if one.example]
        # Several examples of one conversation mostly lose the same turns.
        turns_cut = max((one.turns_cut for one in self.examples), default=0)
        learned = sum(example.answers for example in kept) if self.answers else 0
        return {
            "rows": 1,
            "inputs_cut": int(any(one.input_cut or one.turns_cut for one in self.examples)),
            "turns_cut": turns_cut,
            "responses_cut": int(any(one.example and one.response_tokens_cut for one in self.examples)),
            "dropped": int(not kept),
            "end_markers_removed": int(self.end_markers),
            "answers": learned,
            "answers_cut": self.answers - learned,
            "rows_split": int(len(kept) > 1),
        }


def describe_conversations(count: Mapping[str, int]) -> list[str]:
    """Say what became of the conversations and long texts of one source; nothing where there were none."""
    sentences = []
    if count.get("answers"):
        lost = f"; {count['answers_cut']:,} are lost with the oldest turns" if count["answers_cut"] else ""
        sentences.append(f"{count['answers']:,} answers in conversations are learned{lost}")
    if count.get("rows_split"):
        sentences.append(
            f"{count['rows_split']:,} rows become several examples each: the answers of a conversation whose "
            "earlier turns the template writes otherwise, or the pieces of a long text"
        )
    return sentences
