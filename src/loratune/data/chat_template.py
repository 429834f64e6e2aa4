"""Chat templates: a model's own prompt format, rendered by the code that transformers itself uses.

A template is a program in Jinja, run in a sandbox. It turns messages into one text, in which the model's
special tokens mark the turns. Here that text is taken apart, into what the template wrote and what somebody
said, so that a text that spells a special token stays text:

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    template--------- ^^ template----------------------------
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loratune.errors import UserError

Message = Mapping[str, Any]  # role and content, as transformers has them; perhaps tool_calls and the like
PRIVATE_USE = range(0xE000, 0xF8FF)  # characters without a meaning, of which two mark where a content stands


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template."""

    source: str  # Jinja
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # such as bos_token -> <s>
    markers: Collection[str] = ()  # the names of all special tokens of the tokenizer
    name: str = "chat"

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Render messages as transformers' `apply_chat_template` does.

        Args:
            messages: the conversation.
            add_generation_prompt: whether the beginning of an answer follows.

        Raises:
            UserError: the template fails, or refuses the conversation; names its line where that is known.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        tokens: dict[str, Any] = dict(self.special_tokens)
        try:
            texts, _ = render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                **tokens,
            )
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            raise UserError(
                f"the chat template refuses this conversation{where}: {error.message or error}"
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
            raise UserError(f"the chat template fails on this conversation: {error}") from error
        return texts[0]

    def split(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[str]:
        """Render messages, and return the template's texts and the messages' in turn, the template's first.

        A template may change contents beyond trimming them; then all text is returned as the template's.

        Raises:
            UserError: it does so with a content that spells a special token, which would become one.
        """
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        start, end = choose_marks(messages)
        marked = [mark_content(message, start, end) for message in messages]
        rendered = self.render(marked, add_generation_prompt=add_generation_prompt)
        parts = re.split(f"[{start}{end}]", rendered)
        # A template that drops the beginning or the end of a content drops the mark there.
        marks = [mark for mark in rendered if mark in (start, end)]
        if "".join(parts) == text and marks == [start, end] * (len(marks) // 2):
            return parts
        for message in messages:
            if spelled := self._find_markers().search(str(message.get("content"))):
                raise UserError(
                    f"the chat template takes contents apart, and one of them spells {spelled[0]}, which "
                    "would become a special token; remove it from the text"
                )
        return [text]

    def split_prompt(self, instruction: str, input: str = "") -> list[str]:
        """Split the prompt of one question into the template's texts and the user's, in turn."""
        content = f"{instruction}\n\n{input}" if input else instruction
        return self.split([{"role": "user", "content": content}], add_generation_prompt=True)

    def find_end_token(self) -> str:
        """Return the special token that the template puts behind an answer.

        Raises:
            UserError: there is none, so answers could not end.
        """
        content = chr(PRIVATE_USE[0])  # which no special token contains
        text = self.render([{"role": "user", "content": content}, {"role": "assistant", "content": content}])
        end = self._find_markers().search(text, text.rindex(content) + len(content))
        if end is None:
            raise UserError("no special token follows an answer in the chat template, so none could end")
        return end[0]

    def _find_markers(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self.markers), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def choose_marks(messages: Sequence[Message]) -> tuple[str, str]:
    """Return two characters that no message contains."""
    used = set().union(*(set(str(message.get("content"))) for message in messages))
    free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
    return next(free), next(free)


def mark_content(message: Message, start: str, end: str) -> Message:
    """Put marks around a message's text, inside of its white space: a template that trims removes that."""
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return message
    core = content.strip()
    before, _, after = content.partition(core)
    return {**message, "content": f"{before}{start}{core}{end}{after}"}
