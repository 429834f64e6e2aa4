"""How many of FinQA's own programs our evaluator executes to the recorded result."""

import pytest

from loratune.tasks.finqa.ceiling import Failure, compute_ceiling
from loratune.tasks.finqa.questions import Question
from loratune.tasks.finqa.source import read_questions


@pytest.fixture(scope="module")
def questions_by_split():
    return read_questions("snapshot")[1]


def test_dev_ceiling(questions_by_split):
    ceiling = compute_ceiling(questions_by_split["val"])
    assert (ceiling.programs, round(ceiling.execution_accuracy, 4)) == (883, 0.9977)
    assert [(failure.id, failure.reason.partition(": ")[2]) for failure in ceiling.failures] == [
        ("AAPL/2008/page_78.pdf-2", "the table has no such row"),
        ("APD/2013/page_40.pdf-1", "the table has no such row"),
    ]


def test_test_ceiling(questions_by_split):
    ceiling = compute_ceiling(questions_by_split["test"])
    assert (ceiling.programs, len(ceiling.failures)) == (1132, 5)
    assert all(
        failure.reason.startswith("no result is recorded; the program gives ") for failure in ceiling.failures
    )


def test_wrong_recorded_result_is_explained():
    questions = [
        Question(str(number), "page", "?", [], [], [], "", recorded, program, None)
        for number, (program, recorded) in enumerate(
            [("add(1, 2)", 4.0), ("add(1, 2)", 3.0), ("", 3.0), ("nothing", 1.0)]
        )
    ]
    assert compute_ceiling(questions).failures == [
        Failure("0", "add(1, 2)", "the program gives 3.0, recorded is 4.0"),
        Failure("3", "nothing", "'nothing' is not of the form operation(argument, argument)"),
    ]
    assert compute_ceiling(questions).execution_accuracy == pytest.approx(1 / 3)
