"""Resolve the prompt template: by name, from a file, from an adapter, or the base model's own."""

from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from loratune.data.chat_template import DATE_CALL, ChatTemplate
from loratune.data.template import PromptTemplate, Template, load_template
from loratune.errors import UserError
from loratune.system.messages import warn
from loratune.system.read import read_text

AUTO, CHAT = "auto", "chat"  # the base model's own chat template: where it has one, or always


class ChatTokenizer(Protocol):
    """What a tokenizer says of chats."""

    @property
    def chat_template(self) -> str | None: ...

    @property
    def template_tokens(self) -> dict[str, str]: ...

    @cached_property
    def special_tokens(self) -> dict[str, int]: ...

    def for_chat(self, end_token: str) -> Self: ...


AnyTokenizer = TypeVar("AnyTokenizer", bound=ChatTokenizer)


def check_template_choice(choice: str) -> None:
    """Raise UserError where a choice can be seen to be wrong without the base model."""
    if choice in (AUTO, CHAT):
        return
    if Path(choice).suffix == ".jinja":
        read_text(Path(choice))
    else:
        load_template(choice)


def resolve_template(choice: str, tokenizer: ChatTokenizer, *, today: str = "") -> PromptTemplate:
    """Resolve the user's choice of a prompt template.

    Args:
        choice: auto, chat, the name of a built-in template, or a .toml or .jinja file.
        tokenizer: the base model's.
        today: the date, as 2026-12-31, for a chat template that writes one; "": the current one.

    Raises:
        UserError: there is no such template, or the base model has no chat template that can be used.
    """
    if choice == AUTO:
        return find_own_template(tokenizer, today=today) or load_template("instruction")
    if choice == CHAT:
        if tokenizer.chat_template is None:
            raise UserError(
                "this base model has no chat template",
                setting="template",
                value=choice,
                remedy="choose another one, such as instruction, or name a .jinja file",
            )
        return build_chat_template(tokenizer.chat_template, tokenizer, today=today)
    if (path := Path(choice)).suffix == ".jinja":
        return build_chat_template(read_text(path), tokenizer, name=path.name, today=today)
    return load_template(choice)


def find_own_template(tokenizer: ChatTokenizer, *, today: str = "") -> ChatTemplate | None:
    """Return the base model's own chat template; None where it has none that can be used, with a warning."""
    if tokenizer.chat_template is None:
        return None
    try:
        return build_chat_template(tokenizer.chat_template, tokenizer, today=today)
    except UserError as error:
        warn(f"The base's own chat template is not used: {error.details[0].text}")
        return None


def build_chat_template(
    source: str, tokenizer: ChatTokenizer, *, name: str = CHAT, today: str = ""
) -> ChatTemplate:
    """Build a chat template for a tokenizer, and check that it ends answers.

    Raises:
        UserError: it fails, or no special token follows an answer.
    """
    template = ChatTemplate(
        source,
        tokenizer.template_tokens,
        markers=frozenset(tokenizer.special_tokens),
        name=name,
        date=(today or date.today().isoformat()) if DATE_CALL.search(source) else "",
    )
    _ = template.end_token  # raises where there is none
    return template


def read_template(values: Any, tokenizer: ChatTokenizer, origin: str) -> PromptTemplate:
    """Read the template that an adapter was trained with, from the fields that `to_dict` returns.

    Args:
        values: the fields.
        tokenizer: the base model's.
        origin: what messages call the template, such as its file.

    Raises:
        UserError: a field is missing, unknown or unusable.
    """
    if not isinstance(values, dict) or "chat_template" not in values:
        return Template.from_dict(values, origin)
    template = ChatTemplate.from_dict(values, origin).with_markers(tokenizer.special_tokens)
    _ = template.end_token  # raises where there is none
    return template


def fit_tokenizer(tokenizer: AnyTokenizer, template: PromptTemplate) -> AnyTokenizer:
    """Return the tokenizer as a template needs it.

    A chat template writes BOS itself, and ends answers with a token of its own.
    """
    if isinstance(template, ChatTemplate):
        return tokenizer.for_chat(template.end_token)
    return tokenizer


def get_date(template: PromptTemplate | None) -> str:
    """Return the date that a template writes; "" for one that writes none."""
    return template.date if isinstance(template, ChatTemplate) else ""
