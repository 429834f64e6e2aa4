"""The plain task: answers to instructions, scored by their text alone."""

from loratune.tasks.base import Task


class InstructionTask(Task):
    """The task of rows that no other task owns; only ROUGE-L and the other text metrics apply."""
