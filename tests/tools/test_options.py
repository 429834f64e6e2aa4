"""The reference of the options: up to date, and complete."""

import re

from loratune.cli.arguments import COMMANDS
from loratune.config.base import format_flag
from tools.options import PAGE, SHARED, TITLES, build_page, find_group


def section_of(page: str, title: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    level = title.split(" ")[0]
    return re.split(
        rf"^#{{2,{len(level)}}} ", page.split(f"{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE
    )[0]


def test_the_committed_page_is_what_the_command_writes():
    assert PAGE.read_text(encoding="utf-8") == build_page(), "run python -m tools.options"


def test_every_option_stands_in_its_command_or_in_a_part_that_the_command_links_to():
    page = build_page()
    for name, config_class in COMMANDS.items():
        own = section_of(page, f"## loratune {name}")
        for field in config_class.model_fields:
            group = find_group(config_class, field)
            title = SHARED[group] if group else ""
            place = section_of(page, f"### {title}") if group else own
            shown = field.upper() if field in config_class.POSITIONAL else format_flag(field)
            assert place.count(f"| `{shown}`") == 1, (name, field)
            assert not group or f"[{title.lower()}](#{title.lower().replace(' ', '-')})" in own, (name, field)


def test_an_option_that_a_command_changes_is_described_there():
    page = build_page()
    assert "| `--repetition-penalty` | number, at least 1, at most 10 | `1.1` |" in section_of(
        page, "## loratune compare"
    )
    assert "`--repetition-penalty`" not in section_of(page, "## loratune evaluate")


def test_every_title_stands_before_a_field():
    for name, titles in TITLES.items():
        assert titles.keys() <= COMMANDS[name].model_fields.keys()
        assert all(f"### {title}\n" in build_page() for title in titles.values())
