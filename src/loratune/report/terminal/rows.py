"""Show rows as the model sees them: the prompt dim, each learned token in a colour."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, groupby

from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from loratune.data.example import Example
from loratune.data.truncated_rows import Truncation
from loratune.system.console import console, say, warn

PROMPT_STYLE = "dim"
TARGET_STYLES = ("black on cyan", "black on green")  # in turn, so that each token's borders are seen
END_STYLE = "bold black on yellow"
CUT_STYLE = "bold red"
SPECIAL_STYLE = "magenta"
CUT_WARNING_SHARE = 0.05  # share of a source's rows from which on shortening is worth a warning
MAX_IDS_LISTED = 5  # ids that are named
CUT_COUNTS = ("inputs_cut", "responses_cut", "dropped")
SUMMARY_LINES: dict[str, Callable[[dict], str]] = {
    "rows": lambda source: f"{source['rows']:,}",
    "inputs shortened": lambda source: f"{source['inputs_cut']:,}",
    "responses shortened": lambda source: f"{source['responses_cut']:,}",
    "answers of conversations learned": lambda source: f"{source['answers']:,}",
    "answers lost with their turns": lambda source: f"{source['answers_cut']:,}",
    "rows split into several examples": lambda source: f"{source['rows_split']:,}",
    "rows dropped": lambda source: f"{source['dropped']:,}",
    "end markers taken off outputs": lambda source: f"{source['end_markers_removed']:,}",
    "tokens": lambda source: f"{source['tokens']:,}",
    "learned": lambda source: f"{source['learned'] / max(source['tokens'], 1):.0%}",
    **{
        f"tokens in a row, {words}": lambda source, share=share: f"{source['row_lengths'][share]:,}"
        for share, words in {
            "5": "5 % below",
            "50": "half below",
            "95": "95 % below",
            "100": "longest",
        }.items()
    },
    "learned in a row, half below": lambda source: f"{source['learned_lengths']['50']:,}",
    "learned in a row, longest": lambda source: f"{source['learned_lengths']['100']:,}",
}
# Lines that are left out where no row is a conversation or a long text.
CONVERSATION_LINES = (
    "answers of conversations learned",
    "answers lost with their turns",
    "rows split into several examples",
)


def show_rows(rows: Sequence[Truncation], tokenizer, *, end: str = "") -> None:
    """Show rows as the model sees them.

    Args:
        rows: what is shown.
        tokenizer: the model's.
        end: the name of the end token, where it is worth showing.
    """
    coloured = console.color_system is not None and not console.no_color
    console.print(build_legend(coloured), soft_wrap=not console.is_terminal)
    for number, row in enumerate(rows, 1):
        console.print()
        console.print(Rule(build_heading(number, row), align="left", style=PROMPT_STYLE))
        # Without a terminal a line stays whole.
        console.print(build_body(row, tokenizer, coloured, end=end), soft_wrap=not console.is_terminal)
    if not rows:
        say("No row was shortened or dropped.")
    console.print()


def build_legend(coloured: bool) -> Text:
    text = Text.assemble(
        ("the prompt", PROMPT_STYLE),
        "   ",
        ("<special token>", SPECIAL_STYLE),
        "   ",
        *format_target(["what ", "is ", "learned"], coloured, ended=True),
    )
    return text.append("   ↵ end of a line   ").append("✂ cut here", CUT_STYLE)


def build_heading(number: int, row: Truncation) -> Text:
    text = Text(f"{number}. {escape_invisible(row.record.id)}", style="bold")
    if row.example is None:
        return text.append(f"  {escape_invisible(row.record.source)}: dropped", CUT_STYLE)
    example = row.example
    amounts = f"{len(example.prompt) + len(example.response):,} tokens, {len(example.learned):,} learned"
    return text.append(f"  {escape_invisible(row.record.source)}: {amounts}", "not bold")


def build_body(row: Truncation, tokenizer, coloured: bool, *, end: str = "") -> Text:
    if row.example is None:
        text = format_unlearned(row.untruncated.prompt, tokenizer)
        if not row.untruncated.response:
            return text.append(" ✂ dropped: the output is nothing but an end marker", CUT_STYLE)
        return text.append(
            f" ✂ dropped: the prompt's {len(row.untruncated.prompt):,} tokens leave no room to learn",
            CUT_STYLE,
        )
    text = Text()
    position = 0
    for ids, is_learned in list_segments(row.example):
        is_cut_here = row.input_tokens_cut > 0 and position <= row.input_cut_position < position + len(ids)
        before = row.input_cut_position - position if is_cut_here else 0
        for part, has_cut in ((ids[:before], False), (ids[before:], is_cut_here)):
            if has_cut:
                text.append(f" ✂ {row.input_tokens_cut:,} tokens of the input left out ✂ ", CUT_STYLE)
            if is_learned:
                text.append(format_learned(part, tokenizer, coloured, end=end))
            else:
                text.append(format_unlearned(part, tokenizer))
        position += len(ids)
    if row.response_tokens_cut:
        text.append(f" ✂ {row.response_tokens_cut:,} tokens of the response and the end left out", CUT_STYLE)
    return text


def list_segments(example: Example) -> Iterator[tuple[list[int], bool]]:
    """Yield the ids of the prompt, of each answer and of what stands between them, and which are learned."""
    yield example.prompt, False
    start = 0
    for stop, following in [*example.context, (len(example.response), len(example.response))]:
        yield example.response[start:stop], True
        yield example.response[stop:following], False
        start = following


def format_learned(ids: Sequence[int], tokenizer, coloured: bool, *, end: str) -> Text:
    """Format learned tokens; the end token, where they have one, is a sign."""
    if not ids:
        return Text()
    ended = ids[-1] in (tokenizer.eos_id, tokenizer.text_eos_id)
    texts = decode_pieces(tokenizer.decode_to_bytes(ids[:-1] if ended else ids))
    return Text.assemble(*format_target(texts, coloured, ended, end=end))


def format_unlearned(ids: Sequence[int], tokenizer) -> Text:
    """Format tokens that are not learned; special tokens stand out."""
    names = {id_: name for name, id_ in tokenizer.special_tokens.items()}
    text = Text()
    for is_special, group in groupby(ids, key=names.__contains__):
        if is_special:
            text.append(escape_invisible("".join(names[id_] for id_ in group)), SPECIAL_STYLE)
        else:
            pieces = decode_pieces(tokenizer.decode_to_bytes(list(group)))
            text.append(escape_invisible("".join(pieces)), PROMPT_STYLE)
    return text


def format_target(
    texts: Sequence[str], coloured: bool, ended: bool, *, end: str = ""
) -> list[str | tuple[str, str]]:
    """Format tokens that are trained on; without colour brackets mark them."""
    if coloured:
        shown: list[str | tuple[str, str]] = [
            (escape_invisible(text), style) for text, style in zip(texts, cycle(TARGET_STYLES), strict=False)
        ]
        return [*shown, (f" ■ {end or 'end'} ", END_STYLE)] if ended else shown
    return ["⟦", "¦".join([*map(escape_invisible, texts), *([f"■{end}"] if ended else [])]), "⟧"]


def decode_pieces(spelled: Sequence[bytes]) -> list[str]:
    """Return the text of each token; tokens that share a character are joined, stray bytes are escaped."""
    pieces, waiting = [], b""
    for token in spelled:
        waiting += token
        try:
            pieces.append(waiting.decode())
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                continue
            pieces.append(waiting.decode(errors="backslashreplace"))
        waiting = b""
    return [*pieces, waiting.decode(errors="backslashreplace")] if waiting else pieces


def escape_invisible(text: str) -> str:
    """Mark line ends, and escape whatever would control the terminal or not be seen."""
    return "".join(map(escape_character, text))


def escape_character(letter: str) -> str:
    if letter == "\n":
        return "↵\n"
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def show_summary(summary: dict, max_tokens: int) -> None:
    sources = summary["sources"]
    table = Table("", *map(escape_invisible, sources), title="All rows")
    for column in table.columns[1:]:
        column.justify = "right"
    for title, number in SUMMARY_LINES.items():
        numbers = [number(source) for source in sources.values()]
        if title not in CONVERSATION_LINES or set(numbers) != {"0"}:
            table.add_row(title, *numbers)
    console.print(table)
    for name, source in sources.items():
        if (cut := sum(source[what] for what in CUT_COUNTS)) > CUT_WARNING_SHARE * source["rows"]:
            warn(
                f"{escape_invisible(name)}: {cut:,} of {source['rows']:,} rows were shortened or dropped to "
                "fit in "
                f"{max_tokens:,} tokens; --cut shows them"
            )
    if twice := summary["duplicate_ids"]:
        named = ", ".join(map(escape_invisible, list(twice)[:MAX_IDS_LISTED])) + (
            ", ..." if len(twice) > MAX_IDS_LISTED else ""
        )
        warn(f"several rows have the same id, for {len(twice):,} ids: {named}")
