"""Programs for FinQA questions of which only the result is known: the usual forms, tried over the numbers of
the page.

Of 3,337 known programs 20 forms such as `subtract(N, N), divide(#0, N)` make up 86 %. A form filled with
numbers of the page that gives the recorded result to five decimals is most likely what was meant; where
several do, the words of the question and the place of the numbers decide. `python -m tools.programs` measures
how often that is right.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loratune.data import snapshot
from loratune.tasks.finqa.facts import build_page_facts
from loratune.tasks.finqa.program import (
    DECIMALS,
    TABLE_OPERATIONS,
    Program,
    Step,
    execute_program,
    is_same_program,
    is_same_result,
    parse_number,
    parse_program,
)
from loratune.tasks.finqa.ranker import rank_facts, stem_words

MIN_FORM_COUNT = 3  # known programs of a form that is tried
MAX_FORMS = 20  # the likeliest for the question
MAX_FACTS = 14  # the best ranked
MAX_NUMBERS = {1: 60, 2: 60, 3: 30}  # tried in a form with so many places
MAX_HITS = 200  # looked at for each form
TOLERANCE = (
    0.6e-5  # results are recorded to five decimals; what is as near as this is calculated once more, exactly
)
# Of a program that is taken, the lead before the best one with another meaning.
MIN_SCORE, MIN_LEAD = (
    -12.0,
    1.0,
)

ProgramForm = tuple[tuple[str, tuple[str, str]], ...]  # steps; N stands for a number of the page
NUMPY_OPERATIONS = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}


def extract_form(program: Program) -> ProgramForm:
    return tuple(
        (step.operation, tuple(a if a[0] in "#c" else "N" for a in step.arguments)) for step in program
    )


def count_placeholders(form: ProgramForm) -> int:
    return sum(argument == "N" for _, arguments in form for argument in arguments)


@dataclass
class FormStatistics:
    """How often each form occurs, and with which words in the question (naive Bayes)."""

    count: Counter = field(default_factory=Counter)
    with_word: Counter = field(default_factory=Counter)  # (form, word)
    word: Counter = field(default_factory=Counter)

    @classmethod
    def of(cls, known: Sequence[tuple[str, Program]]) -> "FormStatistics":
        """From questions and their programs."""
        forms = cls()
        for question, program in known:
            form = extract_form(program)
            forms.count[form] += 1
            for word in set(stem_words(question)):
                forms.word[word] += 1
                forms.with_word[form, word] += 1
        return forms

    def score(self, form: ProgramForm, question: str) -> float:
        """Logarithm of the form's probability for the question, up to a constant."""
        total, score = self.count.total(), math.log(self.count[form] / self.count.total())
        for word in set(stem_words(question)):
            if self.word[word] >= 5:
                share = self.word[word] / total
                score += math.log((self.with_word[form, word] + 2 * share) / (self.count[form] + 2) / share)
        return score

    def rank_forms(self, question: str) -> list[tuple[float, ProgramForm]]:
        usual = [
            form
            for form, count in self.count.items()
            if count >= MIN_FORM_COUNT
            and 1 <= count_placeholders(form) <= 3
            and all(operation in NUMPY_OPERATIONS for operation, _ in form)
        ]
        return sorted(((self.score(form, question), form) for form in usual), key=lambda one: -one[0])[
            :MAX_FORMS
        ]


def find_program(
    question: str, facts: dict[str, str], result: float, forms: FormStatistics
) -> Program | None:
    """The most plausible program over the facts' numbers that gives this result; None where none stands
    out.
    """
    place = rank_numbers(facts, rank_facts(question, facts))
    found = [
        (score - compute_penalty(program, place), program)
        for score, form in forms.rank_forms(question)
        for program in fill_form(form, list(place), result)
    ]
    if not found:
        return None
    score, best = max(found, key=lambda one: one[0])
    rival = max((other for other, program in found if not is_same_program(best, program)), default=-math.inf)
    return best if score >= MIN_SCORE and score - rival >= MIN_LEAD else None


def rank_numbers(facts: dict[str, str], ranked: Sequence[str]) -> dict[str, int]:
    """Each number of the best ranked facts, as it is written there, and the rank of the first fact that has
    it.
    """
    place: dict[str, int] = {}
    for number, name in enumerate(ranked[:MAX_FACTS]):
        for text in extract_numbers(facts[name]):
            place.setdefault(text, number)
    return place


def extract_numbers(text: str) -> list[str]:
    """As they are written, and negative ones also without their sign: programs have them either way."""
    found = re.findall(r"-?\d+(?:\.\d+)?%?", text.replace(",", ""))
    return [written for number in found for written in dict.fromkeys((number.lstrip("-"), number))]


def has_numbers(facts: dict[str, str], program: Program) -> bool:
    """Whether all numbers of the program stand in the facts, as percentages or not."""
    known = {text.rstrip("%") for fact in facts.values() for text in extract_numbers(fact)}
    arithmetic = [step for step in program if step.operation not in TABLE_OPERATIONS]
    return all(a[0] in "#c" or a.rstrip("%") in known for step in arithmetic for a in step.arguments)


def fill_form(form: ProgramForm, numbers: list[str], result: float) -> list[Program]:
    """The programs of this form over the numbers that give the result."""
    count = count_placeholders(form)
    numbers = numbers[: MAX_NUMBERS[count]]
    if not numbers:
        return []
    off = np.abs(evaluate_form(form, np.array([parse_number(text) for text in numbers])) - result)
    programs = []
    for choice in np.argwhere(off <= TOLERANCE)[:MAX_HITS]:
        texts = iter([numbers[number] for number in choice])
        programs.append(
            tuple(
                Step(name, tuple(next(texts) if a == "N" else a for a in arguments))
                for name, arguments in form
            )
        )
    return [
        program
        for program in programs
        if not has_trivial_step(program) and is_same_result(execute_program(program), round(result, DECIMALS))
    ]


def evaluate_form(form: ProgramForm, values: np.ndarray) -> np.ndarray:
    """The form's result for every choice of the values, [values, ...] with an axis for each place."""
    count, axis, steps = count_placeholders(form), 0, []
    for operation, arguments in form:
        operands = []
        for argument in arguments:
            if argument == "N":
                operands.append(values.reshape([-1 if axis == other else 1 for other in range(count)]))
                axis += 1
            else:
                operands.append(
                    steps[int(argument[1:])] if argument[0] == "#" else np.float64(parse_number(argument))
                )
        with np.errstate(all="ignore"):
            steps.append(NUMPY_OPERATIONS[operation](*operands))
    return np.broadcast_to(steps[-1], (len(values),) * count)


def has_trivial_step(program: Program) -> bool:
    """Whether a step does nothing, or next to it: has 0 or 1 as its second number, or one number twice."""
    return any(
        step.arguments[0] == step.arguments[1] or (step.arguments[1].rstrip("%") in ("0", "1", "0.0", "1.0"))
        for step in program
    )


def compute_penalty(program: Program, rank_by_number: dict[str, int]) -> float:
    """Numbers from facts far down, from several facts, small whole ones, years and percentages are less
    likely to be meant.
    """
    used = [argument for step in program for argument in step.arguments if argument in rank_by_number]
    ranks = [rank_by_number[text] for text in used]
    values = [parse_number(text) for text in used]
    small = sum(abs(value) <= 12 and "." not in text for value, text in zip(values, used, strict=True))
    years = sum(1990 <= value <= 2030 for value in values)
    percents = sum(text.endswith("%") for text in used)
    return 0.35 * sum(ranks) / len(ranks) + 0.5 * len(set(ranks)) + 0.7 * small + 0.5 * years + percents


def measure_accuracy() -> None:
    """How often a program is found, and the right one, on one half of the known ones with the forms of the
    other.
    """
    known = [
        row
        for row in snapshot.read("finqa_train")
        if row["program"] and isinstance(row["exe_ans"], int | float)
    ]
    learned, asked = known[::2], known[1::2]
    forms = FormStatistics.of([(row["question"], parse_program(row["program"])) for row in learned])
    found = right = 0
    for row in asked:
        facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
        if program := find_program(row["question"], facts, row["exe_ans"], forms):
            found, right = found + 1, right + is_same_program(parse_program(row["program"]), program)
    print(
        f"{len(asked):,} questions: {found:,} programs found, {right:,} of them ({right / found:.1%}) equal "
        "the known one"
    )


if __name__ == "__main__":
    measure_accuracy()
