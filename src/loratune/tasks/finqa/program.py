"""FinQA's language: read a program, carry it out, compare programs (Chen et al. 2021, sections 3.2 and 5;
arXiv:2109.00122).

subtract(5829, 5735), divide(#0, 5735)        linear: #0 is the result of the first operation
divide(subtract(5829, 5735), 5735)            nested: the same
table_average(net revenue, none)              over a row of the page's table
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ARITHMETIC_OPERATIONS = ("add", "subtract", "multiply", "divide", "exp", "greater")
TABLE_OPERATIONS = ("table_max", "table_min", "table_sum", "table_average")
DECIMALS = 5  # to which results are rounded before they are compared
MAX_DEPTH = 50  # operations inside each other
CALL = re.compile(r"([a-z_]+)\s*\(")
REFERENCE = re.compile(r"#([0-9]{1,4})")
CONSTANT = re.compile(r"const_(m?)([0-9]+)")
NUMBER = re.compile(
    r"(?:-?\$?|\$-)(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)%?"
)  # in a cell of a table, without commas and spaces
OPERAND = re.compile(r"(-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)) ?(%?)")
THOUSANDS = re.compile(r"-?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?(?: ?%)?")
MAX_PARTS = 16  # between commas, of two numbers: 10^21 has 8

Value = float | str  # the string is yes or no
Table = Sequence[Sequence[str]]  # the first cell of a row is its name


class ProgramError(ValueError):
    """The text is no program, or it cannot be carried out; says where and why."""


@dataclass(frozen=True)
class Step:
    operation: str
    arguments: tuple[
        str, str
    ]  # numbers, constants, `#n` for the result of step n, or a row's name and `none`

    def __str__(self) -> str:
        return f"{self.operation}({', '.join(self.arguments)})"


Program = tuple[Step, ...]


def parse_program(text: str) -> Program:
    """A linear or nested program as linear steps. Raises ProgramError."""
    steps: list[Step] = []
    results: list[
        str
    ] = []  # `#0` in the text is the first operation's result, however many steps are nested in it
    for call in split_at_commas(text):
        results.append(flatten(call.strip(), steps, results))
    return tuple(steps)


def format_program(program: Program) -> str:
    """The canonical text: the linear form, numbers without thousands commas. This is what an answer is scored
    by.
    """
    return ", ".join(map(str, program))


def flatten(call: str, steps: list[Step], results: Sequence[str], depth: int = 1) -> str:
    """Append the steps of one operation, the inner ones first; returns the reference to its result."""
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
    """A row's name, which may hold commas, and a second argument without a meaning: `none`, but for two of
    the gold programs.
    """
    name, _, last = (part.strip() for part in inside.rpartition(","))
    if not name or not last:
        raise ProgramError(f"{call!r} needs the name of a row of the table, then none")
    return name, last


def parse_two_arguments(parts: Sequence[str], call: str) -> tuple[str, str]:
    """Both arguments, from the parts between commas: a comma divides arguments or a number's thousands.

    `add(1, 234)` has two numbers, and so has `add(1,234, 5)`, because three parts make two arguments in one
    way only. Raises ProgramError where there is no way, or more than one, as for `add(1,234,567)`.
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
    """One part alone, or a number with its thousands joined; None where the parts are no number."""
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
    # A `$` makes an operand no number in the paper's own evaluation, too.
    number = OPERAND.fullmatch(text)
    if not number:
        raise ProgramError(f"{text!r} is not a number")
    parse_number(number[1])
    return number[1] + number[2]


def split_at_commas(text: str) -> list[str]:
    """Parts, with their spaces, between commas outside all brackets. Raises ProgramError when a bracket has
    no partner.
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
    """Of an operand or a cell: `5735`, `$ 1,200`, `5%`, `const_100` or `const_m1`. Raises ProgramError."""
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
    """The last step's result, rounded to 5 decimals, or `yes` / `no`. Raises ProgramError."""
    *_, last = iterate_step_results(program, table)
    return round_value(last)


def iterate_step_results(program: Program, table: Table | None = None) -> Iterator[Value]:
    """Each step's result in turn, not rounded. Raises ProgramError at the first step that has none."""
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
    # Of rows with the same name the last counts, as in the paper's own evaluation.
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
    """What a model's answer amounts to when it is a program that can be carried out; None when it is not."""
    try:
        return execute_program(parse_program(text), table)
    except ProgramError:
        return None


def is_same_result(first: Value | None, second: Value | None) -> bool:
    if isinstance(first, str) or isinstance(second, str) or first is None or second is None:
        return first == second and first is not None
    return round_value(first) == round_value(second)


PRIME = 2**61 - 1


def is_same_program(gold: Program, other: Program) -> bool:
    """Whether two programs are the same function of their arguments, which count as symbols, not as numbers.

    This is the paper's program accuracy: `add(3, 5)` equals `add(5, 3)`, and `multiply(2, 4)` is not `add(4,
    4)`. A program with an argument that the gold one lacks is another program. The paper compares simplified
    formulas; here both are calculated modulo a prime with a random number for each symbol, where different
    rational functions agree by chance once in 10^17 (Schwartz 1980, "Fast probabilistic algorithms"). Powers
    and comparisons are equal if their operands are.
    """
    symbols: dict[str, int] = {}
    wanted = evaluate_symbolically(gold, symbols, new=True)
    return wanted is not None and wanted == evaluate_symbolically(other, symbols, new=False)


def evaluate_symbolically(program: Program, symbols: dict[str, int], new: bool) -> int | None:
    """The program's value modulo PRIME; None for one that divides by zero or has a symbol that is not `new`
    and unknown.
    """
    results: list[int] = []
    for step in program:
        names = (
            [str(step)]
            if step.operation in TABLE_OPERATIONS
            else [name for name in step.arguments if not name.startswith("#")]
        )
        if unknown := [name for name in names if name not in symbols]:
            if not new:
                return None
            symbols.update({name: hash_to_residue(name) for name in unknown})
        if step.operation in TABLE_OPERATIONS:
            results.append(symbols[str(step)])
            continue
        first, second = (
            results[int(name[1:])] if name.startswith("#") else symbols[name] for name in step.arguments
        )
        if step.operation == "divide" and second == 0:
            return None
        results.append(apply_modulo(step.operation, first, second))
    return results[-1]


def apply_modulo(operation: str, first: int, second: int) -> int:
    match operation:
        case "add":
            return (first + second) % PRIME
        case "subtract":
            return (first - second) % PRIME
        case "multiply":
            return first * second % PRIME
        case "divide":
            return first * pow(second, -1, PRIME) % PRIME
        case _:
            return hash_to_residue(f"{operation} {first} {second}")


def hash_to_residue(name: str) -> int:
    """A number that looks random and is a function of the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()) % PRIME
