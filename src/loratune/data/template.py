"""Prompt templates: the one place where an instruction becomes a prompt, in training and in every use."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from loratune.data.conversation import get_function, view_as_turn
from loratune.data.example import Message
from loratune.data.json_values import has_lone_surrogate
from loratune.errors import Problem, UserError
from loratune.system.read import load_toml

PLACEHOLDER = re.compile(r"\{instruction\}|\{input\}")


class PromptTemplate(Protocol):
    """What turns an instruction into a prompt: a `Template`, or a model's own `ChatTemplate`."""

    @property
    def name(self) -> str: ...

    def split_prompt(self, instruction: str, input: str = "") -> Sequence[str]:
        """Split a prompt into the template's texts and the user's, in turn, starting with the template's."""
        ...

    def split_conversation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[str]:
        """Split the prompt of a conversation that waits for an answer, as `split_prompt` does."""
        ...

    def check(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """Raise UserError where the template cannot show a whole conversation."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are stored with an adapter."""
        ...


@dataclass(frozen=True)
class Template:
    """A prompt with an input, and one without; the response and end-of-text follow the prompt directly."""

    name: str
    with_input: str  # holds {instruction} and {input}
    without_input: str  # holds {instruction}

    def split_prompt(self, instruction: str, input: str = "") -> tuple[str, ...]:
        """Split a prompt into the template's texts and the user's, in turn, starting with the template's.

        Only the template's texts may hold special tokens; a marker in the user's text is ordinary text.
        """
        form = self.with_input if input else self.without_input
        # The parts are joined, not formatted, because the user's text may hold braces.
        before, _, rest = form.partition("{instruction}")
        middle, _, after = rest.partition("{input}")
        return (before, instruction, middle, input, after) if input else (before, instruction, rest)

    def split_conversation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[str, ...]:
        """Split the prompt of a conversation: its last question, with everything else as the input."""
        turn = view_as_turn(messages)
        return self.split_prompt(turn.instruction, turn.input)

    def check(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """Check that the template shows a whole conversation.

        Raises:
            UserError: a message calls a tool, for which this template has no form.
        """
        for message in messages:
            for call in message.get("tool_calls") or ():
                raise UserError(
                    f"the template {self.name!r} has no form for tool calls, such as that of "
                    f"{get_function(call)['name']}; write the call into the message's content, or choose a "
                    "base model whose chat template shows it, such as Qwen 2.5"
                )

    def render(self, instruction: str, input: str = "") -> str:
        """Return the prompt as one text, for people; models get the parts of `split_prompt`."""
        return "".join(self.split_prompt(instruction, input))

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, str], origin: str = "template") -> "Template":
        """Build a template from its stored or written fields.

        Args:
            values: name, with_input and without_input.
            origin: what messages call the template, such as its file.

        Raises:
            UserError: a field is missing, unknown or unusable.
        """
        expected = {"name", "with_input", "without_input"}
        if not isinstance(values, dict):
            raise UserError(f"{origin}: must have the parts name, with_input and without_input")
        problems = [f"{origin}: {name} is missing" for name in sorted(expected - values.keys())]
        problems += [
            f"{origin}: {name} is not a part of a template; its parts are name, with_input, without_input"
            for name in sorted(values.keys() - expected)
        ]
        for form, placeholders in (
            ("with_input", ("{instruction}", "{input}")),
            ("without_input", ("{instruction}",)),
        ):
            text = values.get(form, "".join(placeholders))
            if not isinstance(text, str) or PLACEHOLDER.findall(text) != [*placeholders]:
                problems.append(
                    f"{origin}: {form} must be a text that holds {' and then '.join(placeholders)}, each once"
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
        names = ", ".join(["auto", "chat", *BUILT_IN_TEMPLATES])
        raise UserError(
            "unknown",
            setting="template",
            value=choice,
            remedy=f"choose {names}, a .toml file with with_input and without_input, or a .jinja file with a "
            "chat template",
        )
    try:
        values = load_toml(path)
    except UserError as error:
        texts = [problem.removeprefix(f"{path}: ") for problem in error.problems]
        raise UserError(*(Problem(text, "template", path) for text in texts)) from error
    return Template.from_dict({"name": path.stem, **values}, origin=choice)
