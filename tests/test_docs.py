"""The documentation: links lead somewhere, and what it quotes is what the program says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
# The lists of fragments that the program says: "`train` says `one`, `two` or `three`".
SAYS = re.compile(r"\bsays (`[^`]+`(?:(?:,|,? and|,? or)\s+`[^`]+`)*)")


def strip_code(text: str) -> str:
    """Return a page without its blocks of code, in which nothing is a link."""
    return re.sub(r"(?ms)^(`{3,}).*?^\1\s*$", "", text)


@cache
def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", strip_code(page.read_text(encoding="utf-8")))
    anchors: set[str] = set()
    for heading in headings:
        text = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        anchor, number = text.replace(" ", "-"), 0
        while (numbered := f"{anchor}-{number}" if number else anchor) in anchors:
            number += 1
        anchors.add(numbered)
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    broken = []
    for link in LINK.finditer(strip_code(page.read_text(encoding="utf-8"))):
        target = link[1] or link[2]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in list_anchors(path)):
            broken.append(target)
    assert not broken


@cache
def list_messages() -> list[str]:
    """Return every text in the source but docstrings, with "..." for what it inserts."""
    texts = []
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                texts.append("".join(map(str, parts)))
    return texts


def is_said(quote: str) -> bool:
    """Return whether a text of the source has the quote's pieces, in order."""
    pattern = re.compile(".*".join(map(re.escape, quote.split("..."))), re.DOTALL)
    return any(pattern.search(text) for text in list_messages())


def list_problems() -> dict[str, str]:
    """Return the entries of the page of problems, by their titles."""
    page = (ROOT / "docs" / "problems.md").read_text(encoding="utf-8")
    return dict(re.findall(r"(?ms)^### (.+?)\n(.*?)(?=^##|\Z)", page))


def test_quoted_messages_are_those_of_the_program():
    lists = [listed for text in list_problems().values() for listed in SAYS.findall(text)]
    quotes = [" ".join(quote.split()) for listed in lists for quote in re.findall(r"`([^`]+)`", listed)]
    assert len(quotes) >= 40
    assert [quote for quote in quotes if not is_said(quote)] == []


def test_each_problem_has_a_cause_and_a_fix():
    problems = list_problems()
    assert len(problems) >= 40
    incomplete = [
        name
        for name, text in problems.items()
        if re.findall(r"^\* \*\*(\w+):\*\*", text, re.MULTILINE) != ["Cause", "Fix"]
    ]
    assert incomplete == []
