"""The constraint that holds an answer to programs about its own page."""

from collections.abc import Sequence

from loratune.data.example import Record
from loratune.evaluation.scoring import table_of, wants_program
from loratune.generation.constrained import Constraint, Vocabulary
from loratune.models.tokenizer import Tokenizer
from loratune.tasks.finqa.grammar import programs_about


def constraints_for(records: Sequence[Record], tokenizer: Tokenizer) -> list[Constraint | None]:
    """For each record whose response is a program. Raises UserError where the tokenizer's tokens are not made of bytes."""
    vocabulary = Vocabulary(tokenizer.pieces(), tokenizer.eos_id)
    return [program_constraint(record, vocabulary) if wants_program(record) else None for record in records]


def program_constraint(record: Record, vocabulary: Vocabulary) -> Constraint:
    return Constraint(programs_about(f"{record.instruction}\n{record.input}", table_of(record)), vocabulary)
