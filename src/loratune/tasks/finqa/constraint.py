"""Constrained decoding for FinQA: an answer must be a program about its own page."""

from loratune.data.example import Record
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.tasks.finqa.grammar import build_program_grammar
from loratune.tasks.finqa.scoring import get_table


def build_program_constraint(record: Record, vocabulary: TokenBytes) -> Constraint:
    """Allow only programs over the prompt's numbers and the rows of the page's table."""
    return Constraint(
        build_program_grammar(f"{record.instruction}\n{record.input}", get_table(record)), vocabulary
    )
