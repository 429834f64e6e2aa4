"""Chat templates: a model's own prompt format, rendered by the code that transformers itself uses.

A template is a program in Jinja, run in a sandbox. It turns messages into one text, in which the model's
special tokens mark the turns. Here that text is taken apart, into what the template wrote and what somebody
said, so that a text that spells a special token stays text:

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    template--------- ^^ template----------------------------
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from loratune.data.conversation import get_function, join_input
from loratune.data.example import Message
from loratune.errors import UserError

PRIVATE_USE = range(0xE000, 0xF8FF)  # characters without a meaning, of which two mark where a content stands
# With it a template writes the current date in a format, which is a literal wherever it has been seen.
DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
Tools = Sequence[Mapping[str, Any]]  # JSON schemas of functions


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template."""

    source: str  # Jinja
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # such as bos_token -> <s>
    markers: Collection[str] = ()  # the names of all special tokens of the tokenizer
    name: str = "chat"
    # What the template takes for today, as 2026-12-31: prompts do not change from one day to the next.
    date: str = ""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools = ()
    ) -> str:
        """Render messages as transformers' `apply_chat_template` does.

        Args:
            messages: the conversation.
            add_generation_prompt: whether the beginning of an answer follows.
            tools: what the conversation may call.

        Raises:
            UserError: the template fails, or refuses the conversation; names its line where that is known.
        """
        text, _ = self._render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        return text

    def render_with_spans(
        self, messages: Sequence[Message], *, tools: Tools = ()
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render messages, and also return the spans of the text that `{% generation %}` encloses."""
        return self._render(messages, tools=tools, return_assistant_tokens_mask=True)

    def _render(
        self, messages: Sequence[Message], *, tools: Tools, **options: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        variables: dict[str, Any] = dict(self.special_tokens)
        try:
            texts, spans = render_jinja_template(
                [[strip_weight(message) for message in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.dated_source,
                **options,
                **variables,
            )
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            raise UserError(
                f"the chat template refuses this conversation{where}: {error.message or error}"
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
            raise UserError(f"the chat template fails on this conversation: {error}") from error
        return texts[0], [(int(start), int(stop)) for start, stop in spans[0]] if spans else []

    def split(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools = ()
    ) -> list[str]:
        """Render messages, and return the template's texts and the messages' in turn, the template's first.

        A template may change contents beyond trimming them; then all text is returned as the template's.

        Raises:
            UserError: it does so with a content that spells a special token, which would become one. So would
                one in a tool's name or arguments, whose texts are the template's, too.
        """
        options = {"add_generation_prompt": add_generation_prompt, "tools": tools}
        text = self.render(messages, **options)
        self._refuse_markers("a tool", [*map(list_other_fields, messages), *tools])
        start, end = choose_marks(messages)
        marked = [mark_content(message, start, end) for message in messages]
        rendered = self.render(marked, **options)
        parts = re.split(f"[{start}{end}]", rendered)
        # A template that drops the beginning or the end of a content drops the mark there.
        marks = [mark for mark in rendered if mark in (start, end)]
        if "".join(parts) == text and marks == [start, end] * (len(marks) // 2):
            return parts
        self._refuse_markers("a message", [message.get("content") for message in messages])
        return [text]

    def _refuse_markers(self, what: str, values: Sequence[Any]) -> None:
        """Refuse values that spell a special token where they would become one."""
        filled = [value for value in values if value]
        if filled and (spelled := self.marker_pattern.search(json.dumps(filled, ensure_ascii=False))):
            raise UserError(
                f"{what} spells {spelled[0]}, which would become a special token in this chat template; "
                "remove it from the text"
            )

    def split_conversation(self, messages: Sequence[Message], tools: Tools = ()) -> list[str]:
        """Split the prompt of a conversation that waits for an answer into texts, as `split` does."""
        return self.split(messages, add_generation_prompt=True, tools=tools)

    def split_prompt(self, instruction: str, input: str = "") -> list[str]:
        """Split the prompt of one question into the template's texts and the user's, in turn."""
        return self.split_conversation([{"role": "user", "content": join_input(instruction, input)}])

    def check(self, messages: Sequence[Message], tools: Tools = ()) -> None:
        """Check that the template shows a whole conversation.

        Raises:
            UserError: it refuses the conversation, or it does not show the calls of tools.
        """
        self.refuse_hidden_calls(messages)
        self.split(messages, tools=tools)

    def refuse_hidden_calls(self, messages: Sequence[Message]) -> None:
        """Raise UserError where the rendered text lacks a call of a tool."""
        names = [
            get_function(call)["name"] for message in messages for call in message.get("tool_calls") or ()
        ]
        if not names:
            return
        mark, _ = choose_marks(messages)
        try:
            shown = self.render([rename_calls(message, mark) for message in messages])
        except UserError:
            shown = ""  # it may fail on the content of such a message, which can be null
        if shown.count(mark) < len(names):
            raise UserError(
                f"the chat template does not show tool calls, such as that of {names[0]}; write the call "
                "into the message's content, or choose a base model whose template shows it, such as Qwen 2.5"
            )

    @cached_property
    def end_token(self) -> str:
        """The special token that the template puts behind an answer.

        Raises:
            UserError: there is none, so answers could not end.
        """
        content = chr(PRIVATE_USE[0])  # which no special token contains
        text = self.render([{"role": "user", "content": content}, {"role": "assistant", "content": content}])
        end = self.marker_pattern.search(text, text.rfind(content) + len(content))
        if end is None or content not in text:
            raise UserError(
                "no special token follows an answer in the chat template, so answers could not end",
                setting="template",
                remedy="choose another one, such as instruction",
            )
        return end[0]

    @cached_property
    def dated_source(self) -> str:
        """The program, in which the current date is the template's."""
        if not self.date:
            return self.source
        today = datetime.fromisoformat(self.date)
        return DATE_CALL.sub(lambda call: json.dumps(today.strftime(call[2])), self.source)

    @cached_property
    def marker_pattern(self) -> re.Pattern[str]:
        """Matches the name of any special token."""
        longest_first = sorted(filter(None, self.markers), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def with_markers(self, markers: Collection[str]) -> "ChatTemplate":
        """Return this template for a tokenizer with these special tokens."""
        return replace(self, markers=frozenset(markers))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are stored with an adapter; the markers are the tokenizer's."""
        stored = {"name": self.name, "chat_template": self.source, "special_tokens": {**self.special_tokens}}
        return stored | ({"date": self.date} if self.date else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str = "template") -> "ChatTemplate":
        """Build a template from the fields that `to_dict` returns.

        Raises:
            UserError: a field is missing or unusable.
        """
        source, tokens = values.get("chat_template"), values.get("special_tokens", {})
        name, date = values.get("name", "chat"), values.get("date", "")
        texts = [name, date, *(tokens.values() if isinstance(tokens, dict) else [None])]
        if not isinstance(source, str) or not all(isinstance(one, str) for one in texts) or not is_date(date):
            raise UserError(f"{origin}: broken: it needs chat_template and special_tokens, as texts")
        return cls(source, tokens, name=name, date=date)


def is_date(text: str) -> bool:
    """Return whether a text is a date as 2026-12-31, or empty."""
    try:
        return not text or bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def strip_weight(message: Message) -> dict[str, Any]:
    """Return a message without its weight, which is ours and not the template's."""
    return {name: value for name, value in message.items() if name != "weight"}


def list_other_fields(message: Message) -> dict[str, Any]:
    """Return what a message holds besides its role and text."""
    return {name: value for name, value in message.items() if name not in ("role", "content", "weight")}


def rename_calls(message: Message, name: str) -> Message:
    """Return a message whose calls are of a tool of this name."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "name": name}}
        if "function" in call
        else {**call, "name": name}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def choose_marks(messages: Sequence[Message]) -> tuple[str, str]:
    """Return two characters that no message contains."""
    used = set().union(*(set(json.dumps(dict(message), ensure_ascii=False)) for message in messages))
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
