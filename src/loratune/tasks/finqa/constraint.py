"""The constraint that holds an answer to programs about its own page."""

from collections.abc import Sequence

from loratune.data.example import Record
from loratune.evaluation.scoring import get_table, wants_program
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.models.tokenizer import Tokenizer
from loratune.tasks.finqa.grammar import build_program_grammar


def build_constraints(records: Sequence[Record], tokenizer: Tokenizer) -> list[Constraint | None]:
    """For each record whose response is a program. Raises UserError where the tokenizer's tokens are not made
    of bytes.
    """
    vocabulary = TokenBytes(tokenizer.pieces(), tokenizer.eos_id)
    return [
        build_program_constraint(record, vocabulary) if wants_program(record) else None for record in records
    ]


def build_program_constraint(record: Record, vocabulary: TokenBytes) -> Constraint:
    return Constraint(
        build_program_grammar(f"{record.instruction}\n{record.input}", get_table(record)), vocabulary
    )
