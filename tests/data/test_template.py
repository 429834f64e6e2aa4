"""Prompt templates: built-in, custom and broken ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data.template import BUILT_IN_TEMPLATES, Template, load_template
from loratune.errors import UserError


def test_default_template_text():
    template = load_template("instruction")
    assert template.render("Add.", "1 2") == "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    assert (
        template.render("Add.") == template.render("Add.", "") == "### Instruction:\nAdd.\n\n### Response:\n"
    )


def test_other_built_in_template_texts():
    chatml, plain = load_template("chatml"), load_template("plain")
    assert chatml.render("Add.", "1 2") == "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.render("Add.") == "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    assert (plain.render("Add.", "1 2"), plain.render("Add.")) == ("Add.\n\n1 2\n", "Add.\n")


@given(st.sampled_from(sorted(BUILT_IN_TEMPLATES)), st.text(), st.text())
def test_user_text_is_unchanged_including_braces(name, instruction, input):
    rendered = BUILT_IN_TEMPLATES[name].render(instruction + "{input}{0}", input)
    assert instruction + "{input}{0}" in rendered
    assert input in rendered


@pytest.mark.parametrize("template", BUILT_IN_TEMPLATES.values(), ids=BUILT_IN_TEMPLATES)
def test_template_survives_to_dict_and_from_dict(template):
    assert Template.from_dict(template.to_dict()) == template


def test_custom_template_is_loaded(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'with_input = "Q: {instruction} ({input})\\nA:"\nwithout_input = "Q: {instruction}\\nA:"\n'
    )
    template = load_template(str(path))
    assert (template.name, template.render("x", "y"), template.render("x")) == (
        "mine",
        "Q: x (y)\nA:",
        "Q: x\nA:",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('with_input = "{instruction} {input}"', "without_input is missing"),
        (
            'with_input = "{instruction}"\nwithout_input = "{instruction}"',
            "with_input must be a text that holds {instruction} and then {input}",
        ),
        (
            'with_input = "{input} {instruction}"\nwithout_input = "{instruction}"',
            "{instruction} and then {input}",
        ),
        ('with_input = "{instruction} {input}"\nwithout_input = 3', "without_input must be a text"),
        (
            'with_input = "{instruction} {input}"\nwithout_input = "{instruction}"\nsystem = "x"',
            "system is not a part",
        ),
        ("with_input = ", "cannot be read as TOML"),
        (
            'with_input = "{instruction} {input}"\nwithout_input = "{instruction} {instruction}"',
            "{instruction}, each once",
        ),
        (
            'with_input = "{instruction} {input}"\nwithout_input = "{instruction} {input}"',
            "without_input must be a text that holds",
        ),
        (
            'name = "a\\nb"\nwith_input = "{instruction} {input}"\nwithout_input = "{instruction}"',
            "name must be a text of one line",
        ),
    ],
)
def test_broken_template_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"mine\.toml") as caught:
        load_template(str(path))
    assert message in str(caught.value)


def test_unknown_template_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"choose auto, chat, instruction, chatml, plain, a \.toml file"):
        load_template("alpaca")
    with pytest.raises(UserError, match="there is no such file"):
        load_template(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    "parts",
    [
        3,
        [],
        "text",
        None,
        {"name": 3, "with_input": "{instruction}{input}", "without_input": "{instruction}"},
    ],
)
def test_template_fields_of_the_wrong_type_are_refused(parts):
    """As a broken `loratune.json` may have them."""
    with pytest.raises(UserError, match=r"^some file: "):
        Template.from_dict(parts, "some file")
