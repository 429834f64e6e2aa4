"""Write `docs/results/`: the prose of `benchmarks/pages/*.md`, the numbers of `benchmarks/results/*.json`.

    python -m benchmarks.report

A page takes numbers through functions: `result("NAME")` is a whole results file, `table("NAME", columns)`
some of its columns, `value("NAME", row, column)` one number, `source("NAME")` its date and commit.
"""

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.record import RESULTS_FOLDER, ROOT, Result, read_result
from loratune.system.atomic import write_text

PAGES_FOLDER = Path(__file__).with_name("pages")
OUT = ROOT / "docs" / "results"
BASE_ASKED_IN_OUR_TEMPLATE = "Base asked in loratune's template, not in its own chat template."
HEADER = "<!-- `python -m benchmarks.report` writes this file from benchmarks/pages/{name}. -->\n"


def main() -> None:
    for name, text in render_pages().items():
        write_text(OUT / name, text)


def render_pages() -> dict[str, str]:
    """Return each page's text by its file name.

    Raises:
        ValueError: a results file is on no page.
    """
    used: set[str] = set()
    environment = Environment(
        loader=FileSystemLoader(PAGES_FOLDER), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.globals.update(build_functions(used))
    pages = {
        path.name: HEADER.format(name=path.name) + environment.get_template(path.name).render()
        for path in sorted(PAGES_FOLDER.glob("*.md"))
    }
    if unused := {path.stem for path in RESULTS_FOLDER.glob("*.json")} - used:
        raise ValueError(f"these results are on no page: {', '.join(sorted(unused))}")
    return pages


def build_functions(used: set[str]) -> dict[str, Callable[..., str]]:
    """Return what a page calls; the names of the results files that it shows go into `used`."""

    def result(name: str) -> str:
        used.add(name)
        return format_result(read_result(name))

    def table(name: str, *columns: str) -> str:
        return read_result(name).format_table(columns)

    def value(name: str, row: str, column: str) -> str:
        return read_result(name).format_cell(row, column)

    def source(name: str) -> str:
        found = read_result(name)
        return f"{found.date}, `{found.commit}`"

    return {"result": result, "table": table, "value": value, "source": source}


def format_result(result: Result) -> str:
    """Return a section: what was measured, the table, where, and the commands."""
    asked = BASE_ASKED_IN_OUR_TEMPLATE if result.base_in_own_template is False else ""
    words = [f"{result.machine[0].upper()}{result.machine[1:]}.", f"Commit `{result.commit}`, {result.date}."]
    return "\n\n".join(
        (
            f"### {result.title}",
            result.what,
            result.format_table(),
            " ".join(word for word in (*words, asked, result.notes) if word),
            "\n".join(("```", *result.commands, "```")),
        )
    )


if __name__ == "__main__":
    main()
