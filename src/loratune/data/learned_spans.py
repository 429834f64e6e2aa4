"""Find what a conversation teaches in a chat template's text: each answer with its end token.

<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
                                                     learned---------
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loratune.data.chat_template import ChatTemplate, Tools
from loratune.data.example import Message
from loratune.errors import UserError

Span = tuple[int, int]
GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation, or its beginning, as text."""

    messages: Sequence[Message]
    answers: Sequence[int]  # the numbers of the messages that are learned
    parts: list[str]  # the template's texts and the messages', in turn, the template's first
    learned: list[Span]  # the answers' characters in the joined parts


def render_learned(
    template: ChatTemplate, messages: Sequence[Message], learned: Sequence[int], *, tools: Tools = ()
) -> list[RenderedChat]:
    """Render a conversation with the spans of the answers that are learned.

    One text has all of them where the template writes the beginning of a conversation the same whether or not
    more follows. Where it does not, for instance because it leaves out the reasoning of earlier answers, each
    answer has a text of its own, which ends with it.

    Args:
        template: the chat template.
        messages: the conversation.
        learned: the numbers of the answers, from 0, in order.
        tools: what the conversation may call.

    Raises:
        UserError: the template fails, ends an answer with no special token, or does not write an answer after
            the beginning that it gives the model.
    """
    spans = find_learned(template, messages, learned, tools=tools)
    if spans is not None:
        return [RenderedChat(messages, learned, template.split(messages, tools=tools), spans)]
    chats = []
    for number in learned:
        beginning = messages[: number + 1]
        spans = find_learned(template, beginning, [number], tools=tools)
        if spans is None:
            raise UserError(
                "the chat template does not write an answer after the beginning that it gives the model "
                "(add_generation_prompt), so what is learned cannot be told from the prompt",
                setting="template",
                remedy="choose another one, such as instruction",
            )
        chats.append(RenderedChat(beginning, [number], template.split(beginning, tools=tools), spans))
    return chats


def find_learned(
    template: ChatTemplate, messages: Sequence[Message], learned: Sequence[int], *, tools: Tools
) -> list[Span] | None:
    """Return the spans of the answers in the rendered text; None where its beginnings differ."""
    if GENERATION_BLOCK.search(template.source):
        text, spans = template.render_with_spans(messages, tools=tools)
        answers = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
        if len(spans) == len(answers):
            of_answer = dict(zip(answers, spans, strict=True))
            return [include_end_token(template, text, of_answer[number]) for number in learned]
    whole = template.render(messages, tools=tools)
    spans = []
    for number in learned:
        prompt = template.render(messages[:number], add_generation_prompt=True, tools=tools)
        is_last = number == len(messages) - 1
        answered = whole if is_last else template.render(messages[: number + 1], tools=tools)
        if not answered.startswith(prompt):
            return None
        stop = find_end(template, answered, len(prompt), answer=messages[number])
        if whole[:stop] != answered[:stop]:
            return None
        spans.append((len(prompt), stop))
    return spans


def include_end_token(template: ChatTemplate, text: str, span: Span) -> Span:
    """Extend a span by the special token that follows it directly, so that answers learn to end."""
    start, stop = span
    end = template.marker_pattern.match(text, stop)
    return (start, end.end()) if end else span


def find_end(template: ChatTemplate, text: str, start: int, *, answer: Message) -> int:
    """Return where an answer ends: behind its end token.

    Args:
        template: the chat template.
        text: the rendered conversation up to and with the answer.
        start: where the answer begins.
        answer: the message.

    Raises:
        UserError: no special token follows it.
    """
    content = (answer.get("content") or "").strip()
    place = text.find(content, start)
    after = place + len(content) if place >= 0 else start  # else it was changed, and it spells no marker
    end = text.find(template.end_token, after)
    if end >= 0:
        return end + len(template.end_token)
    # Some templates end the call of a tool with another token than an answer.
    markers = list(template.marker_pattern.finditer(text, after))
    if not markers:
        raise UserError("the chat template ends an answer with no special token")
    return markers[-1].end()
