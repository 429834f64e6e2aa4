"""The ceiling of execution accuracy: FinQA's own programs, executed by our evaluator."""

from collections.abc import Iterable
from dataclasses import dataclass

from loratune.tasks.finqa.program import ProgramError, execute_program, is_same_result, parse_program
from loratune.tasks.finqa.questions import Question


@dataclass(frozen=True)
class Failure:
    """A question whose gold program does not give the recorded result."""

    id: str
    program: str
    reason: str


@dataclass(frozen=True)
class Ceiling:
    """How many gold programs there are, and which of them fail."""

    programs: int
    failures: list[Failure]

    @property
    def execution_accuracy(self) -> float:
        return 1 - len(self.failures) / self.programs


def compute_ceiling(questions: Iterable[Question]) -> Ceiling:
    """Execute the gold programs of all questions that have one; at least one must."""
    with_program = [question for question in questions if question.program]
    reasons = [(question, explain_failure(question)) for question in with_program]
    failures = [Failure(question.id, question.program, reason) for question, reason in reasons if reason]
    return Ceiling(len(with_program), failures)


def explain_failure(question: Question) -> str:
    """Say why the gold program does not give the recorded result; "" if it does."""
    try:
        result = execute_program(parse_program(question.program), question.table)
    except ProgramError as error:
        return str(error)
    if question.exe_ans is None:
        return f"no result is recorded; the program gives {result}"
    if is_same_result(result, question.exe_ans):
        return ""
    return f"the program gives {result}, recorded is {question.exe_ans}"
