"""The one place where an instruction becomes a prompt: for training, evaluation, comparison and whatever else
follows.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from loratune.data.jsonl import has_lone_surrogate
from loratune.errors import UserError
from loratune.system.read import load_toml

PLACEHOLDER = re.compile(r"\{instruction\}|\{input\}")


@dataclass(frozen=True)
class Template:
    """Two prompt forms: with an input, and without one. The response follows the prompt directly, then
    end-of-text.
    """

    name: str
    with_input: str  # holds {instruction} and {input}
    without_input: str  # holds {instruction}

    def parts(self, instruction: str, input: str = "") -> tuple[str, ...]:
        """The prompt in parts, the template's own text and the user's in turn: a marker is a special token in
        the first alone.
        """
        form = self.with_input if input else self.without_input
        # Parts are joined, not formatted: a text with braces in it stays as it is.
        before, _, rest = form.partition("{instruction}")
        middle, _, after = rest.partition("{input}")
        return (before, instruction, middle, input, after) if input else (before, instruction, rest)

    def render(self, instruction: str, input: str = "") -> str:
        """The prompt as one text, for people to read; what models read is made of its parts."""
        return "".join(self.parts(instruction, input))

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, str], origin: str = "template") -> "Template":
        """Raises UserError for missing, unknown or unusable parts."""
        expected = {"name", "with_input", "without_input"}
        if not isinstance(values, dict):
            raise UserError(f"{origin}: must have the parts name, with_input and without_input")
        problems = [f"{origin}: {name} is missing" for name in sorted(expected - values.keys())]
        problems += [
            f"{origin}: {name} is not a part of a template; its parts are name, with_input, without_input"
            for name in sorted(values.keys() - expected)
        ]
        for form, places in (
            ("with_input", ("{instruction}", "{input}")),
            ("without_input", ("{instruction}",)),
        ):
            text = values.get(form, "".join(places))
            if not isinstance(text, str) or PLACEHOLDER.findall(text) != [*places]:
                problems.append(
                    f"{origin}: {form} must be a text that holds {' and then '.join(places)}, each once"
                )
            elif has_lone_surrogate(text):
                problems.append(f"{origin}: {form} holds a broken character (a lone surrogate)")
        if not str(values.get("name", "-")).isprintable() or not isinstance(values.get("name", "-"), str):
            problems.append(f"{origin}: name must be a text of one line")
        if problems:
            raise UserError(*problems)
        return cls(**values)


BUILT_IN_TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "instruction",
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            "### Instruction:\n{instruction}\n\n### Response:\n",
        ),
        Template(
            "chatml",
            "<|im_start|>user\n{instruction}\n\n{input}<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
        ),
        Template("plain", "{instruction}\n\n{input}\n", "{instruction}\n"),
    )
}


def load_template(choice: str) -> Template:
    """Load a built-in template by its name, or the user's own from a .toml file.

    Raises:
        UserError: there is no such template, or the file does not hold `with_input` and `without_input`.
    """
    if choice in BUILT_IN_TEMPLATES:
        return BUILT_IN_TEMPLATES[choice]
    path = Path(choice)
    if path.suffix != ".toml":
        names = ", ".join(BUILT_IN_TEMPLATES)
        raise UserError(
            "unknown",
            setting="template",
            value=choice,
            remedy=f"choose {names} or a .toml file with with_input and without_input",
        )
    try:
        values = load_toml(path)
    except UserError as error:
        raise UserError(f"--template {error}") from error
    return Template.from_dict({"name": path.stem, **values}, origin=choice)
