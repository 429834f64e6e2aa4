"""The facts of a FinQA page, its sentences and its table's rows, and the choice of those that are shown.

A row becomes "ROW | COLUMN : VALUE ; COLUMN : VALUE", a third shorter than the sentence that FinQA makes of
it, which repeats the row's name for each column; ids are FinQA's, text_N and table_N.
"""

import re
from collections.abc import Collection, Sequence


def build_page_facts(
    pre_text: Sequence[str], post_text: Sequence[str], table: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Id to text, in the order of the page: the text before the table, the table's rows, the text after
    it.
    """
    texts = {f"text_{number}": " ".join(text.split()) for number, text in enumerate([*pre_text, *post_text])}
    rows = {f"table_{number}": format_row(table[0], row) for number, row in enumerate(table)}
    before = dict(list(texts.items())[: len(pre_text)])
    return before | rows | texts


def format_row(header: Sequence[str], row: Sequence[str]) -> str:
    """The first cell names the row, the header's others name the columns. "" for a row without cells."""
    if not header or not row:
        return ""
    cells = (
        f"{column} : {strip_repeated_number(value)}"
        for column, value in zip(header[1:], row[1:], strict=False)
    )
    return " ".join(f"{row[0]} | {' ; '.join(cells)}".split())


def get_row_name(text: str) -> str:
    """The first cell of a row, from its text."""
    return text.partition(" | ")[0]


def strip_repeated_number(cell: str) -> str:
    """FinQA writes a number in brackets, or a percentage, twice: `-9457 ( 9457 )`, `10% ( 10 % )`. The first
    is enough.
    """
    first, bracket, second = cell.partition("(")
    digits = [re.sub(r"[^\d.]", "", part) for part in (first, second)]
    return first.strip() if bracket and digits[0] and digits[0] == digits[1] else cell


def put_first(names: Collection[str], ranked: Sequence[str]) -> list[str]:
    """`names` before all others, each part in the order of the ranking."""
    first = [name for name in ranked if name in names]
    return [
        *first,
        *(name for name in names if name not in ranked),
        *(name for name in ranked if name not in names),
    ]


def match_facts(program: str, facts: dict[str, str]) -> set[str]:
    """The facts that hold a number which the program uses, or the row that it names. A guess at unknown gold
    facts.
    """
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
    """The best ranked facts that together have at most `limit` tokens; at least the first one."""
    kept, used = set(ranked[:1]), lengths[ranked[0]] if ranked else 0
    for name in ranked[1:]:
        if used + lengths[name] <= limit:
            kept.add(name)
            used += lengths[name]
    return kept


def format_facts(facts: dict[str, str], kept: Collection[str]) -> str:
    """The kept facts as one text, a line each, in the order of the page."""
    return "\n".join(text for name, text in facts.items() if name in kept)
