"""The page in a real browser: hostile texts show as text, and no script of theirs runs."""

import html
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from loratune.report.html import render_comparison_page
from support.evaluations import HOSTILE, comparison, evaluation

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Each would say so in the page's title, were it to run.
ACT = "document.title='RAN'"
TEXTS = [
    *HOSTILE,
    f"<script>{ACT}</script>",
    f"</script><script>{ACT}</script>",
    f'<img src=x onerror="{ACT}">',
    f'"><svg onload={ACT}>',
    f"' autofocus onfocus='{ACT}",
    f"javascript:{ACT}",
    f'<a href="javascript:{ACT}">click</a>',
    f'<iframe srcdoc="<script>parent.{ACT}</script>"></iframe>',
    f"<!--<script>{ACT}//--></script>",
    f"\u2028{ACT}\u2029",
    "<base href=//x><meta http-equiv=refresh content=0;url=//x><style>*{display:none}</style>",
    "\u202eright to left\u202c",
]


def dom_of(page: Path, profile: Path) -> str:
    """The document after its scripts ran."""
    quiet = ["background-networking", "component-update", "sync", "gpu", "extensions"]
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        *(f"--disable-{what}" for what in quiet),
        "--no-first-run",
    ]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
def test_hostile_texts_are_texts_in_a_browser(tmp_path):
    hostile = "\n".join(TEXTS)
    found = replace(comparison(hostile, evaluation(hostile)), adapter=Path(f"<script>{ACT}<"))
    (tmp_path / "page.html").write_text(render_comparison_page(found), encoding="utf-8")
    dom = dom_of(tmp_path / "page.html", tmp_path / "profile")
    title = html.unescape(re.search(r"(?s)<title>(.*?)</title>", dom)[1])
    assert title.endswith(": model comparison") and f"<script>{ACT}</script>" in title
    # Our own script ran: it shows the form and counts the cards.
    assert "4 of 4 shown" in dom
    shown = html.unescape(re.sub(r"<[^>]*>", "", dom))
    for text in TEXTS:
        visible = text.replace("\x00", "").replace("\r", "")
        assert visible in shown or visible in shown.replace("\ufffd", ""), text


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
def test_the_browser_would_run_what_is_not_escaped(tmp_path):
    (tmp_path / "page.html").write_text(f"<title>before</title><script>{ACT}</script>")
    assert "<title>RAN</title>" in dom_of(tmp_path / "page.html", tmp_path / "profile")
