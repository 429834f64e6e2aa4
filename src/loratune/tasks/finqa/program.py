"""FinQA's program language: parse and execute programs, compare results (Chen et al. 2021, arXiv:2109.00122).

subtract(5829, 5735), divide(#0, 5735)        linear: #0 is the result of the first operation
divide(subtract(5829, 5735), 5735)            nested: the same
table_average(net revenue, none)              over a row of the page's table
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ARITHMETIC_OPERATIONS = ("add", "subtract", "multiply", "divide", "exp", "greater")
TABLE_OPERATIONS = ("table_max", "table_min", "table_sum", "table_average")
DECIMALS = 5  # results are rounded before they are compared
MAX_DEPTH = 50  # of nested operations
CALL = re.compile(r"([a-z_]+)\s*\(")
REFERENCE = re.compile(r"#([0-9]{1,4})")
CONSTANT = re.compile(r"const_(m?)([0-9]+)")
# In a cell of a table, without commas and spaces.
NUMBER = re.compile(r"(?:-?\$?|\$-)(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)%?")
OPERAND = re.compile(r"(-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)) ?(%?)")
THOUSANDS = re.compile(r"-?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?(?: ?%)?")
MAX_PARTS = 16  # between the commas of two numbers; 10^21 has 8

Value = float | str  # a string is yes or no
Table = Sequence[Sequence[str]]  # the first cell of a row is its name


class ProgramError(ValueError):
    """The text is no program, or it cannot be executed; the message says where and why."""


@dataclass(frozen=True)
class Step:
    """One operation of a program in linear form."""

    operation: str
    # Numbers, constants, `#n` for the result of step n; or a row's name and `none`.
    arguments: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.operation}({', '.join(self.arguments)})"


Program = tuple[Step, ...]


def parse_program(text: str) -> Program:
    """Parse a linear or nested program into linear steps.

    Raises:
        ProgramError: the text is no program.
    """
    steps: list[Step] = []
    # `#0` in the text is the first operation's result, however many steps are nested in it.
    results: list[str] = []
    for call in split_at_commas(text):
        results.append(flatten(call.strip(), steps, results))
    return tuple(steps)


def format_program(program: Program) -> str:
    """Format a program as its canonical text: the linear form, numbers without thousands commas."""
    return ", ".join(map(str, program))


def flatten(call: str, steps: list[Step], results: Sequence[str], depth: int = 1) -> str:
    """Append the steps of one operation, the inner ones first, and return the reference to its result."""
    match = CALL.match(call)
    if not match or not call.endswith(")"):
        raise ProgramError(f"{call!r} is not of the form operation(argument, argument)")
    if depth > MAX_DEPTH:
        raise ProgramError(f"operations are nested more than {MAX_DEPTH} deep")
    operation, inside = match[1], call[match.end() : -1]
    parts = split_at_commas(inside)
    if operation in TABLE_OPERATIONS:
        arguments = parse_row_arguments(inside, call)
    elif operation in ARITHMETIC_OPERATIONS:
        first, second = parse_two_arguments(parts, call)
        arguments = (
            parse_operand(first, steps, results, depth),
            parse_operand(second, steps, results, depth),
        )
    else:
        raise ProgramError(
            f"{operation!r} is no operation; there are {', '.join(ARITHMETIC_OPERATIONS + TABLE_OPERATIONS)}"
        )
    steps.append(Step(operation, arguments))
    return f"#{len(steps) - 1}"


def parse_row_arguments(inside: str, call: str) -> tuple[str, str]:
    """Parse a row's name, which may hold commas, and the second argument, which has no meaning.

    The second argument is `none` in all but two of the gold programs.
    """
    name, _, last = (part.strip() for part in inside.rpartition(","))
    if not name or not last:
        raise ProgramError(f"{call!r} needs the name of a row of the table, then none")
    return name, last


def parse_two_arguments(parts: Sequence[str], call: str) -> tuple[str, str]:
    """Join the parts between commas to two arguments; a comma separates arguments or a number's thousands.

    `add(1, 234)` has two numbers, and so has `add(1,234, 5)`, because its three parts make two arguments in
    only one way.

    Raises:
        ProgramError: there is no way, or more than one, as for `add(1,234,567)`.
    """
    ways = []
    if len(parts) <= MAX_PARTS:
        pairs = (
            (join_argument(parts[:place]), join_argument(parts[place:])) for place in range(1, len(parts))
        )
        ways = [(first, second) for first, second in pairs if first is not None and second is not None]
    if not ways:
        raise ProgramError(f"{call!r} has {len(parts)} arguments; two are needed")
    if len(ways) > 1:
        raise ProgramError(
            f"{call!r} can be read in several ways: its numbers must be without commas, or a space after an "
            "argument"
        )
    return ways[0]


def join_argument(parts: Sequence[str]) -> str | None:
    """Join the thousands of a number; None if several parts are no number."""
    text = ",".join(parts).strip()
    if len(parts) == 1:
        return text
    return text.replace(",", "") if THOUSANDS.fullmatch(text) else None


def parse_operand(text: str, steps: list[Step], results: Sequence[str], depth: int) -> str:
    if CALL.match(text):
        return flatten(text, steps, results, depth + 1)
    if text.startswith("#"):
        reference = REFERENCE.fullmatch(text)
        if not reference or int(reference[1]) >= len(results):
            raise ProgramError(f"{text} does not refer to an earlier operation")
        return results[int(reference[1])]
    if CONSTANT.fullmatch(text):
        parse_number(text)
        return text
    # As in the paper's own evaluation, an operand with `$` is no number.
    number = OPERAND.fullmatch(text)
    if not number:
        raise ProgramError(f"{text!r} is not a number")
    parse_number(number[1])
    return number[1] + number[2]


def split_at_commas(text: str) -> list[str]:
    """Split a text at commas outside all brackets; the parts keep their spaces.

    Raises:
        ProgramError: a bracket is not matched.
    """
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    if depth:
        raise ProgramError(f"a bracket has no partner in {text!r}")
    parts.append(text[start:])
    return parts


def parse_number(text: str) -> float:
    """Parse the number of an operand or a cell: `5735`, `$ 1,200`, `5%`, `const_100` or `const_m1`.

    Raises:
        ProgramError: the text is no number, or too large a one.
    """
    plain = text.replace(",", "").replace(" ", "")
    if constant := CONSTANT.fullmatch(plain):
        plain = "-" * bool(constant[1]) + constant[2]
    elif not NUMBER.fullmatch(plain):
        raise ProgramError(f"{text!r} is not a number")
    number = float(plain.replace("$", "").rstrip("%")) / (100 if plain.endswith("%") else 1)
    if not math.isfinite(number):
        raise ProgramError(f"{text[:20]!r}... is too large a number")
    return number


def execute_program(program: Program, table: Table | None = None) -> Value:
    """Return the last step's result, rounded to 5 decimals, or `yes` or `no`.

    Raises:
        ProgramError: a step has no result.
    """
    *_, last = iterate_step_results(program, table)
    return round_value(last)


def iterate_step_results(program: Program, table: Table | None = None) -> Iterator[Value]:
    """Yield each step's result, not rounded.

    Raises:
        ProgramError: a step has no result.
    """
    results: list[Value] = []
    for step in program:
        if step.operation in TABLE_OPERATIONS:
            results.append(aggregate_row(step, table))
        else:
            results.append(
                calculate(step, *(resolve_argument(argument, results) for argument in step.arguments))
            )
        yield results[-1]


def round_value(value: Value) -> Value:
    return value if isinstance(value, str) else round(value, DECIMALS)


def resolve_argument(argument: str, results: Sequence[Value]) -> float:
    value = results[int(argument[1:])] if argument.startswith("#") else parse_number(argument)
    if isinstance(value, str):
        raise ProgramError(f"{argument} is {value}, which cannot be calculated with")
    return value


def calculate(step: Step, first: float, second: float) -> Value:
    try:
        match step.operation:
            case "add":
                result = first + second
            case "subtract":
                result = first - second
            case "multiply":
                result = first * second
            case "divide":
                result = first / second
            case "exp":
                result = first**second
            case "greater":
                return "yes" if first > second else "no"
    except ArithmeticError as error:
        raise ProgramError(f"{step}: {error}") from error
    return require_finite(result, step)


def require_finite(result: float | complex, step: Step) -> float:
    if isinstance(result, complex) or not math.isfinite(result):
        raise ProgramError(f"{step}: the result is not a finite real number")
    return result


def aggregate_row(step: Step, table: Table | None) -> float:
    if not table:
        raise ProgramError(f"{step} needs a table")
    # As in the paper's own evaluation, the last of several rows with the same name counts.
    cells = next((row[1:] for row in reversed(table) if row and row[0] == step.arguments[0]), None)
    if not cells:
        raise ProgramError(f"{step}: the table has no such row")
    # A cell such as `-0.3 ( 0.3 )` shows its number twice; what is before the bracket counts.
    values = [parse_number(cell.split("(")[0]) for cell in cells]
    match step.operation:
        case "table_max":
            return max(values)
        case "table_min":
            return min(values)
        case "table_sum":
            return require_finite(sum(values), step)
        case _:
            return require_finite(sum(values) / len(values), step)


def execute_text(text: str, table: Table | None = None) -> Value | None:
    """Return the result of a model's answer; None if it is no program that can be executed."""
    try:
        return execute_program(parse_program(text), table)
    except ProgramError:
        return None


def is_same_result(first: Value | None, second: Value | None) -> bool:
    if isinstance(first, str) or isinstance(second, str) or first is None or second is None:
        return first == second and first is not None
    return round_value(first) == round_value(second)
