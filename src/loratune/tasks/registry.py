"""The data sources and tasks that there are. A new one is a file or folder, and its line here."""

from loratune.data.example import Record
from loratune.data.sources.base import DataSource
from loratune.data.sources.dolly import DollySource
from loratune.data.sources.hub import HubSource
from loratune.data.sources.user_files import UserFilesSource
from loratune.tasks.base import BuiltInProse, Result, Task
from loratune.tasks.finqa.source import FinqaSource, read_test_prose
from loratune.tasks.finqa.task import FinqaTask
from loratune.tasks.instruction import InstructionTask

# In this order they are asked whether a name on `data` is theirs; a shipped one is named as here.
SOURCES: dict[str, DataSource] = {
    "dolly": DollySource(),
    "finqa": FinqaSource(),
    "files": UserFilesSource(),
    "hub": HubSource(),
}
# The tasks of particular rows; all others have the plain one.
TASKS: dict[str, Task] = {
    "finqa": FinqaTask(),
}
PLAIN_TASK = InstructionTask()
BUILT_IN_PROSE = BuiltInProse("prose of FinQA's test pages", read_test_prose)


def task_of(record: Record) -> Task:
    """Return the task that scores the answers to a row."""
    return next((task for task in TASKS.values() if task.owns(record)), PLAIN_TASK)


def find_result(text: str) -> Result | None:
    """Return what a text amounts to for the first task that it is an answer of; None where there is none."""
    results = (task.find_result(text) for task in TASKS.values())
    return next((result for result in results if result is not None), None)
