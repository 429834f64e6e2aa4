"""The reference of options is what the configurations say."""

from loratune.cli.arguments import COMMANDS
from loratune.config.base import format_flag
from tools.options import PAGE, render_page


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run python -m tools.options"


def test_every_option_of_every_command_is_there():
    sections = PAGE.read_text(encoding="utf-8").split("\n## loratune ")[1:]
    assert [section.split("\n")[0] for section in sections] == list(COMMANDS)
    for section, config in zip(sections, COMMANDS.values(), strict=True):
        for field in config.model_fields:
            assert f"`{field if field in config.POSITIONAL else format_flag(field)}`" in section
