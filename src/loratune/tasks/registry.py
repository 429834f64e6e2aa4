"""Registry of data sources and tasks; a new one is a file or folder and a line here."""

from collections.abc import Sequence

from loratune.data.example import Record
from loratune.data.sources.base import DataSource
from loratune.data.sources.dolly import DollySource
from loratune.data.sources.hub import HubSource
from loratune.data.sources.user_files import UserFilesSource
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.models.tokenizer import Tokenizer
from loratune.tasks.base import BuiltInProse, Result, Task
from loratune.tasks.finqa.source import FinqaSource, read_test_prose
from loratune.tasks.finqa.task import FinqaTask
from loratune.tasks.instruction import InstructionTask

# The first source that recognises a name reads it; a shipped data set has its source's name.
SOURCES: dict[str, DataSource] = {
    "dolly": DollySource(),
    "finqa": FinqaSource(),
    "files": UserFilesSource(),
    "hub": HubSource(),
}
# Rows that none of these tasks owns have the plain one.
TASKS: dict[str, Task] = {
    "finqa": FinqaTask(),
}
PLAIN_TASK = InstructionTask()
BUILT_IN_PROSE = BuiltInProse("prose of FinQA's test pages", read_test_prose)


def task_of(record: Record) -> Task:
    """Return the task that scores the answers to a row."""
    return next((task for task in TASKS.values() if task.owns(record)), PLAIN_TASK)


def find_result(text: str) -> Result | None:
    """Return the value of a text in the first task that it is an answer of; None without such a task."""
    results = (task.find_result(text) for task in TASKS.values())
    return next((result for result in results if result is not None), None)


def select_row_facts(record: Record, facts: str) -> Record | None:
    """Return a row with the kind of facts that `facts` names; None if they are unknown."""
    selected: Record | None = record
    for task in TASKS.values():
        selected = selected and task.select_facts(selected, facts)
    return selected


def build_constraints(records: Sequence[Record], tokenizer: Tokenizer) -> list[Constraint | None]:
    """Build the constraint on the answer to each row; None where its task has none.

    Raises:
        UserError: the tokenizer's tokens are not made of bytes.
    """
    vocabulary = TokenBytes(tokenizer.get_token_bytes(), tokenizer.eos_id)
    return [task_of(record).build_constraint(record, vocabulary) for record in records]
