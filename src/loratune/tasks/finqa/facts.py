"""The facts of a FinQA page (its sentences and its table's rows), and the choice of those that are shown.

A row becomes "ROW | COLUMN : VALUE ; COLUMN : VALUE", a third shorter than FinQA's sentence for it, which
repeats the row's name for each column. Ids are FinQA's: text_N and table_N.
"""

import re
from collections.abc import Collection, Sequence


def build_page_facts(
    pre_text: Sequence[str], post_text: Sequence[str], table: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Map ids to texts in the order of the page: text before the table, the table's rows, text after it."""
    texts = {f"text_{number}": " ".join(text.split()) for number, text in enumerate([*pre_text, *post_text])}
    rows = {f"table_{number}": format_row(table[0], row) for number, row in enumerate(table)}
    before = dict(list(texts.items())[: len(pre_text)])
    return before | rows | texts


def format_row(header: Sequence[str], row: Sequence[str]) -> str:
    """Format a row with its name (the first cell) and the columns' names; "" for a row without cells."""
    if not header or not row:
        return ""
    cells = (
        f"{column} : {strip_repeated_number(value)}"
        for column, value in zip(header[1:], row[1:], strict=False)
    )
    return " ".join(f"{row[0]} | {' ; '.join(cells)}".split())


def get_row_name(text: str) -> str:
    """Return the first cell of a row from its text."""
    return text.partition(" | ")[0]


def strip_repeated_number(cell: str) -> str:
    """Return the first of two equal numbers, as FinQA writes them: `-9457 ( 9457 )`, `10% ( 10 % )`."""
    first, bracket, second = cell.partition("(")
    digits = [re.sub(r"[^\d.]", "", part) for part in (first, second)]
    return first.strip() if bracket and digits[0] and digits[0] == digits[1] else cell


def put_first(names: Collection[str], ranked: Sequence[str]) -> list[str]:
    """Move `names` before all others, both in the order of the ranking."""
    first = [name for name in ranked if name in names]
    return [
        *first,
        *(name for name in names if name not in ranked),
        *(name for name in ranked if name not in names),
    ]


def match_facts(program: str, facts: dict[str, str]) -> set[str]:
    """Guess a program's gold facts: those with a number that it uses, or of a row that it names."""
    arguments = {
        argument.strip() for call in re.findall(r"\(([^()]*)\)", program) for argument in call.split(",")
    }
    numbers = {argument.strip("-%") for argument in arguments if re.fullmatch(r"-?[\d.]*\d%?", argument)}
    rows = {
        argument
        for argument in arguments
        if re.search(r"[a-z]", argument) and argument != "none" and "const" not in argument
    }
    return {
        name
        for name, text in facts.items()
        if numbers & set(re.findall(r"\d+(?:\.\d+)?", text))
        or (name.startswith("table") and get_row_name(text) in rows)
    }


def select_best_facts(ranked: Sequence[str], lengths: dict[str, int], limit: int) -> set[str]:
    """Select the best ranked facts with at most `limit` tokens together; at least the first one."""
    selected, used = set(ranked[:1]), lengths[ranked[0]] if ranked else 0
    for name in ranked[1:]:
        if used + lengths[name] <= limit:
            selected.add(name)
            used += lengths[name]
    return selected


def format_facts(facts: dict[str, str], selected: Collection[str]) -> str:
    """Join the selected facts in the order of the page, one per line."""
    return "\n".join(text for name, text in facts.items() if name in selected)
