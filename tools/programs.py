"""Search for the programs of FinQA questions of which only the result is recorded.

Of 3,337 known programs, 86 % have one of 20 forms such as `subtract(N, N), divide(#0, N)`. If such a form,
filled with numbers of the page, gives the recorded result to five decimals, it is most likely the right
program; where several do, the question's words and the ranks of the numbers decide. `python -m
tools.programs` measures how often the right one is found.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loratune.data import snapshot
from loratune.tasks.finqa.equivalence import is_same_program
from loratune.tasks.finqa.facts import build_page_facts
from loratune.tasks.finqa.program import (
    DECIMALS,
    TABLE_OPERATIONS,
    Program,
    Step,
    execute_program,
    is_same_result,
    parse_number,
    parse_program,
)
from loratune.tasks.finqa.ranker import rank_facts, stem_words

MIN_FORM_COUNT = 3  # rarer forms are not tried
MAX_FORMS = 20  # the likeliest for the question
MAX_FACTS = 14  # the best ranked
MAX_NUMBERS = {1: 60, 2: 60, 3: 30}  # tried, by the form's number of placeholders
MAX_CANDIDATES = 200  # of each form
TOLERANCE = 0.6e-5  # results have five decimals; candidates as near as this are calculated again, exactly
# A program needs this score, and this lead over the best one with another meaning.
MIN_SCORE, MIN_LEAD = -12.0, 1.0

ProgramForm = tuple[Step, ...]  # a program in which N stands for each number of the page
NUMPY_OPERATIONS = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}


def extract_form(program: Program) -> ProgramForm:
    """Replace each number of a program by N; constants and references stay."""

    def generalize(argument: str) -> str:
        return argument if argument[0] in "#c" else "N"

    return tuple(
        Step(step.operation, (generalize(step.arguments[0]), generalize(step.arguments[1])))
        for step in program
    )


def count_placeholders(form: ProgramForm) -> int:
    return sum(argument == "N" for step in form for argument in step.arguments)


@dataclass
class FormStatistics:
    """How often each form occurs, and with which words in the question (naive Bayes)."""

    count: Counter[ProgramForm] = field(default_factory=Counter)
    with_word: Counter[tuple[ProgramForm, str]] = field(default_factory=Counter)
    word: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, known: Sequence[tuple[str, Program]]) -> "FormStatistics":
        """Count the forms of questions with known programs."""
        forms = cls()
        for question, program in known:
            form = extract_form(program)
            forms.count[form] += 1
            for word in set(stem_words(question)):
                forms.word[word] += 1
                forms.with_word[form, word] += 1
        return forms

    def score(self, form: ProgramForm, question: str) -> float:
        """Compute the log-probability of the form for the question, up to a constant."""
        total, score = self.count.total(), math.log(self.count[form] / self.count.total())
        for word in set(stem_words(question)):
            if self.word[word] >= 5:
                share = self.word[word] / total
                score += math.log((self.with_word[form, word] + 2 * share) / (self.count[form] + 2) / share)
        return score

    def rank_forms(self, question: str) -> list[tuple[float, ProgramForm]]:
        """Return the scores and forms that are tried for a question, the best first."""
        usual = [
            form
            for form, count in self.count.items()
            if count >= MIN_FORM_COUNT
            and 1 <= count_placeholders(form) <= 3
            and all(step.operation in NUMPY_OPERATIONS for step in form)
        ]
        return sorted(((self.score(form, question), form) for form in usual), key=lambda one: -one[0])[
            :MAX_FORMS
        ]


def find_program(
    question: str, facts: dict[str, str], result: float, forms: FormStatistics
) -> Program | None:
    """Find the most plausible program over the facts' numbers with this result; None if none stands out."""
    rank_by_number = rank_numbers(facts, rank_facts(question, facts))
    candidates = [
        (score - compute_penalty(program, rank_by_number), program)
        for score, form in forms.rank_forms(question)
        for program in fill_form(form, list(rank_by_number), result)
    ]
    if not candidates:
        return None
    score, best = max(candidates, key=lambda one: one[0])
    next_score = max(
        (other for other, program in candidates if not is_same_program(best, program)), default=-math.inf
    )
    return best if score >= MIN_SCORE and score - next_score >= MIN_LEAD else None


def rank_numbers(facts: dict[str, str], ranked: Sequence[str]) -> dict[str, int]:
    """Map each number in the best ranked facts, as written, to the rank of the first fact that has it."""
    ranks: dict[str, int] = {}
    for rank, name in enumerate(ranked[:MAX_FACTS]):
        for number in extract_numbers(facts[name]):
            ranks.setdefault(number, rank)
    return ranks


def extract_numbers(text: str) -> list[str]:
    """Extract numbers as written; negative ones also without their sign, because programs have both."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?%?", text.replace(",", ""))
    return [written for number in numbers for written in dict.fromkeys((number.lstrip("-"), number))]


def has_numbers(facts: dict[str, str], program: Program) -> bool:
    """Tell whether all numbers of the program are in the facts, as percentages or not."""
    known = {text.rstrip("%") for fact in facts.values() for text in extract_numbers(fact)}
    arithmetic = [step for step in program if step.operation not in TABLE_OPERATIONS]
    return all(a[0] in "#c" or a.rstrip("%") in known for step in arithmetic for a in step.arguments)


def fill_form(form: ProgramForm, numbers: list[str], result: float) -> list[Program]:
    """Return the programs of this form over the numbers that give the result."""
    count = count_placeholders(form)
    numbers = numbers[: MAX_NUMBERS[count]]
    if not numbers:
        return []
    errors = np.abs(evaluate_form(form, np.array([parse_number(text) for text in numbers])) - result)
    programs = []
    for choice in np.argwhere(errors <= TOLERANCE)[:MAX_CANDIDATES]:
        programs.append(fill_placeholders(form, [numbers[index] for index in choice]))
    return [
        program
        for program in programs
        if not has_trivial_step(program) and is_same_result(execute_program(program), round(result, DECIMALS))
    ]


def fill_placeholders(form: ProgramForm, numbers: Sequence[str]) -> Program:
    """Replace the placeholders of a form, from left to right, by numbers."""
    remaining = iter(numbers)
    steps = []
    for step in form:
        first, second = (next(remaining) if argument == "N" else argument for argument in step.arguments)
        steps.append(Step(step.operation, (first, second)))
    return tuple(steps)


def evaluate_form(form: ProgramForm, values: np.ndarray) -> np.ndarray:
    """Compute the form's result for every choice of values, with an axis of [values] per placeholder."""
    count, axis, results = count_placeholders(form), 0, []
    for step in form:
        operands = []
        for argument in step.arguments:
            if argument == "N":
                operands.append(values.reshape([-1 if axis == other else 1 for other in range(count)]))
                axis += 1
            elif argument[0] == "#":
                operands.append(results[int(argument[1:])])
            else:
                operands.append(np.float64(parse_number(argument)))
        with np.errstate(all="ignore"):
            results.append(NUMPY_OPERATIONS[step.operation](*operands))
    return np.broadcast_to(results[-1], (len(values),) * count)


def has_trivial_step(program: Program) -> bool:
    """Tell whether a step does almost nothing: its second number is 0 or 1, or equals the first."""
    return any(
        step.arguments[0] == step.arguments[1] or (step.arguments[1].rstrip("%") in ("0", "1", "0.0", "1.0"))
        for step in program
    )


def compute_penalty(program: Program, rank_by_number: dict[str, int]) -> float:
    """Compute a penalty for numbers of low-ranked or several facts, small ones, years and percentages."""
    used = [argument for step in program for argument in step.arguments if argument in rank_by_number]
    ranks = [rank_by_number[text] for text in used]
    values = [parse_number(text) for text in used]
    small = sum(abs(value) <= 12 and "." not in text for value, text in zip(values, used, strict=True))
    years = sum(1990 <= value <= 2030 for value in values)
    percents = sum(text.endswith("%") for text in used)
    return 0.35 * sum(ranks) / len(ranks) + 0.5 * len(set(ranks)) + 0.7 * small + 0.5 * years + percents


def measure_accuracy() -> None:
    """Measure on half of the known programs, with the forms of the other half, how many are found."""
    known = [
        row
        for row in snapshot.read("finqa_train")
        if row["program"] and isinstance(row["exe_ans"], int | float)
    ]
    reference, held_out = known[::2], known[1::2]
    forms = FormStatistics.of([(row["question"], parse_program(row["program"])) for row in reference])
    count = right = 0
    for row in held_out:
        facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
        if program := find_program(row["question"], facts, row["exe_ans"], forms):
            count, right = count + 1, right + is_same_program(parse_program(row["program"]), program)
    print(
        f"{len(held_out):,} questions: {count:,} programs found, {right:,} of them ({right / count:.1%}) "
        "equal the known one"
    )


if __name__ == "__main__":
    measure_accuracy()
