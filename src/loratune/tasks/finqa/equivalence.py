"""Tell whether two FinQA programs mean the same: program accuracy, by arithmetic modulo a prime."""

import hashlib

from loratune.tasks.finqa.program import TABLE_OPERATIONS, Program

PRIME = 2**61 - 1


def is_same_program(gold: Program, other: Program) -> bool:
    """Tell whether two programs are the same function of their arguments, which are symbols, not numbers.

    This is the paper's program accuracy: `add(3, 5)` equals `add(5, 3)`, and `multiply(2, 4)` is not `add(4,
    4)`. A program with an argument that the gold one lacks is another program. The paper compares simplified
    formulas; here both are calculated modulo a prime with a random number for each symbol, where different
    rational functions agree by chance once in 10^17 (Schwartz 1980, "Fast probabilistic algorithms"). Powers
    and comparisons are equal if their operands are.
    """
    symbols: dict[str, int] = {}
    gold_value = evaluate_symbolically(gold, symbols, new=True)
    return gold_value is not None and gold_value == evaluate_symbolically(other, symbols, new=False)


def evaluate_symbolically(program: Program, symbols: dict[str, int], new: bool) -> int | None:
    """Evaluate a program modulo PRIME.

    Args:
        program: the program.
        symbols: the value of each symbol; new ones are added if `new`.
        new: whether the program may have new symbols.

    Returns:
        The value; None if the program divides by zero or has a symbol that it may not have.
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
    """Map a name to a pseudo-random number modulo PRIME."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()) % PRIME
