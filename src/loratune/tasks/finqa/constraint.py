"""The constraint that holds an answer to programs about its own page."""

from loratune.data.example import Record
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.tasks.finqa.grammar import build_program_grammar
from loratune.tasks.finqa.scoring import get_table


def build_program_constraint(record: Record, vocabulary: TokenBytes) -> Constraint:
    """Allow only programs over the numbers and rows that the prompt and the page's table hold."""
    return Constraint(
        build_program_grammar(f"{record.instruction}\n{record.input}", get_table(record)), vocabulary
    )
