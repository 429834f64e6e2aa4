"""The plain task: an instruction with a wanted response, scored by its text alone."""

from loratune.tasks.base import Task


class InstructionTask(Task):
    """Rows that no other task owns: ROUGE-L and the other metrics of text are all there is."""
