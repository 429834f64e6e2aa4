"""The page as a parser sees it: whatever the texts say, the elements are the template's."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import example as given_example
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.report.html import Chart, build_charts, render_comparison_page
from support.evaluations import HOSTILE, comparison, evaluation, example, part, row


class Reader(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        (self.scripts if self.cdata_elem == "script" else self.texts).append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    @property
    def kinds(self) -> set:
        return {(tag, *sorted(attributes)) for tag, attributes in self.elements}


def page_of(text: str) -> Reader:
    return Reader(render_comparison_page(comparison(text, evaluation(text))))


@pytest.fixture(scope="module")
def harmless() -> Reader:
    return page_of("word")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(harmless, text):
    page = page_of(text)
    assert page.kinds == harmless.kinds
    assert (
        page.scripts
        == harmless.scripts
        == [(files("loratune.report") / "templates" / "page.js").read_text().rstrip("\n")]
    )
    count = {
        tag: sum(kind == tag for kind, _ in page.elements)
        for tag in ("script", "style", "article", "option", "svg", "img")
    }
    assert count == {"script": 1, "style": 1, "article": 4, "option": 7, "svg": 3, "img": 0}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert all(attributes.get(name, "#").startswith("#") for name in ("href", "src", "action", "srcset"))
    assert "".join(page.texts).count(text) >= 10


@settings(max_examples=25, deadline=None)
@given(st.text(st.sampled_from("<>&\"'/!-={}%`# \nab") | st.characters(exclude_categories=["Cs"])), st.text())
def test_answers_are_shown_as_they_are(base, tuned):
    """Without charts, which take most of the time."""
    page = Reader(render_comparison_page(replace(comparison(rows=[row(base, tuned, base)]), training=())))
    shown = "".join(page.texts)
    assert base in shown and tuned in shown
    assert sum(tag in ("script", "article", "h3", "h1") for tag, _ in page.elements) == 4


def test_the_policy_allows_this_script_and_nothing_else(harmless):
    policy = next(attributes["content"] for _, attributes in harmless.elements if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(harmless.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_nothing_comes_from_elsewhere():
    page = render_comparison_page(comparison(evaluated=evaluation()))
    assert not re.search(r"https?:|@import|url\((?!#)|\bsrc=|<link|<object|<iframe", page)


def test_colours_are_the_pages_own_and_ids_are_unique(harmless):
    inks = set(re.findall(r"var\(--(\w+)\)", render_comparison_page(comparison(evaluated=evaluation()))))
    defined = set(re.findall(r"--(\w+):", (files("loratune.report") / "templates" / "page.css").read_text()))
    assert inks <= defined
    styles = " ".join(attributes.get("style", "") for tag, attributes in harmless.elements if tag != "span")
    assert (
        "var(--better)" in styles
        and "var(--worse)" in styles
        and not re.search(r"#[0-9a-f]{6}|font:", styles)
    )
    ids = [attributes["id"] for _, attributes in harmless.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = re.findall(r"url\(#(\w+)\)", " ".join(str(attributes) for _, attributes in harmless.elements))
    referred += [attributes["href"][1:] for _, attributes in harmless.elements if attributes.get("href")]
    assert set(referred) <= set(ids)


def test_what_is_missing_is_left_out():
    page = Reader(
        render_comparison_page(
            comparison(evaluated=evaluation() | {"examples": [], "by_source": {}, "by_category": {}})
        )
    )
    assert sum(tag == "svg" for tag, _ in page.elements) == 1  # the training run
    assert sum(tag == "article" for tag, _ in page.elements) == 1
    bare = evaluation() | {"base": {}, "tuned": {}, "difference": {}, "examples": [{"instruction": "Why?"}]}
    assert "Why?" in Reader(render_comparison_page(comparison(evaluated=bare))).texts


WHATEVER = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -1e6, 1e6, 1e-300, 1e308])
DRAWN = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -1e6, 1e6, 1e-300])


@settings(max_examples=10, deadline=None)
@given(WHATEVER, st.tuples(DRAWN, DRAWN).map(sorted), st.lists(DRAWN, min_size=1))
@given_example(0.0, [0.0, 0.0], [0.0, 5e-324])
@given_example(0.0, [0.0, 0.0], [1e5, 1e5 + 3e-11])
def test_no_number_that_is_read_breaks_the_page(value, interval, changes):
    numbers = {name: value for name in part()["base"]}
    odd = {
        "base": numbers,
        "tuned": numbers,
        "difference": {"nll": {"mean": interval[0], "interval": interval}},
    }
    found = evaluation() | odd | {"examples": [example("word", change) for change in changes]}
    page = Reader(
        render_comparison_page(
            comparison(evaluated=found | {"by_category": {"word": part() | odd, "other": part()}})
        )
    )
    assert sum(tag == "svg" for tag, _ in page.elements) == 3


def test_a_few_far_rows_do_not_squeeze_the_rest():
    """They are in the outermost bars, no scale reaches to them, and the caption says how many they are."""
    near, far = [-number / 100 for number in range(40)], [-50.0, 60.0, 70.0]

    def chart_of(changes: list[float]) -> Chart:
        found = evaluation() | {"examples": [example("word", change) for change in changes]}
        return next(
            chart
            for chart in build_charts(comparison(evaluated=found))
            if chart.title == "Change of each example"
        )

    chart = chart_of(near + far)
    assert chart.caption.endswith("regressed. The outermost bars hold 3 rows from beyond the scale.")
    scale = [
        float(tick.replace("\N{MINUS SIGN}", "-"))
        for tick in re.findall(r">([\N{MINUS SIGN}\d]+\.\d+)<", chart.svg)
    ]
    assert min(scale) < -0.39 and max(scale) > 0 and max(map(abs, scale)) < 2
    assert chart_of(near).caption.endswith("regressed.")


def test_states_of_examples(harmless):
    states = [attributes["data-state"] for tag, attributes in harmless.elements if tag == "article"]
    assert states == ["", "improved", "tied", "regressed"]


def test_a_large_evaluation_makes_no_large_page():
    long = "word, and another <word>! " * 2000
    many = evaluation() | {"examples": [example(long, change / 1000) for change in range(-1000, 1000)]}
    page = render_comparison_page(comparison(evaluated=many))
    assert len(page.encode()) < 2_000_000
    assert "100 held-out examples of 2,000" in page and "more characters)" in page
