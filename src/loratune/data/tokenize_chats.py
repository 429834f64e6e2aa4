"""Tokenise conversations in a chat template: one example teaches all answers, each with its end token.

prompt                         response
<|im_start|>user\\nHi...        Hello<|im_end|> \\n<|im_start|>user\\nBye... Ciao<|im_end|>
                               learned-------- context-------------------- learned-------
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from loratune.data.chat_template import ChatTemplate
from loratune.data.conversation import drop_oldest_turns, list_learned, list_messages, list_turn_starts
from loratune.data.end_markers import list_end_markers, strip_end_markers
from loratune.data.example import Example, Message, Record
from loratune.data.learned_spans import RenderedChat, render_learned
from loratune.data.tokenized import TokenizedExample, TokenizedRecord
from loratune.data.truncation import count_excess_tokens, cut_end, naming_record, truncate_turn


def tokenize_chats(
    records: Sequence[Record], template: ChatTemplate, tokenizer, *, max_tokens: int, learn: str
) -> list[TokenizedRecord]:
    """Tokenise records as `tokenize_records` does, and return what became of each, in their order."""
    markers = list_end_markers(tokenizer)
    chats_of = []
    for record in records:
        with naming_record(record):
            chats_of.append(render_chats(record, template, markers, learn=learn))
    chats = [(record, chat) for record, rendered in zip(records, chats_of, strict=True) for chat in rendered]
    encoded = iter(encode_chats(chats, tokenizer))
    options = {"tokenizer": tokenizer, "max_tokens": max_tokens}
    rows = []
    for record, rendered in zip(records, chats_of, strict=True):
        with naming_record(record):
            examples = [truncate_chat(chat, record, next(encoded), template, **options) for chat in rendered]
            if not examples:
                prompt_only = encode_prompt(record, template, tokenizer)
                examples.append(truncate_turn(record, prompt_only, template, **options))
        answers = sum(len(chat.answers) for chat in rendered) if record.messages else 0
        end_markers = any(
            strip_end_markers(message["content"], markers) != message["content"]
            for message in list_messages(record)
            if message["role"] == "assistant" and message.get("content")
        )
        rows.append(TokenizedRecord(record, examples, answers, end_markers))
    return rows


def strip_answers(messages: Sequence[Message], markers: tuple[str, ...]) -> list[Message]:
    """Return messages without end markers at the end of answers."""
    return [
        {**message, "content": strip_end_markers(message["content"], markers)}
        if message["role"] == "assistant" and message.get("content")
        else message
        for message in messages
    ]


def is_empty(answer: Message) -> bool:
    """Return whether nothing is left of an answer that was only an end marker."""
    return not (answer.get("content") or "").strip() and not answer.get("tool_calls")


def render_chats(
    record: Record, template: ChatTemplate, markers: tuple[str, ...], *, learn: str
) -> list[RenderedChat]:
    """Render a record: one text, or one for each answer, or none where nothing is to be learned."""
    messages = strip_answers(list_messages(record), markers)
    answers = [number for number in list_learned(messages, learn) if not is_empty(messages[number])]
    if not answers or not record.has_target:
        return []
    template.refuse_hidden_calls(messages)
    return render_learned(template, messages, answers, tools=record.tools)


def encode_chats(chats: Sequence[tuple[Record, RenderedChat]], tokenizer) -> list[Example]:
    """Tokenise rendered conversations, each up to the end of its last learned answer."""
    encoded = tokenizer.encode_spans([(chat.parts, chat.learned) for _, chat in chats])
    examples = []
    for (record, _), (ids, spans) in zip(chats, encoded, strict=True):
        start, stop = spans[0][0], spans[-1][1]
        context = tuple((end - start, begin - start) for (_, end), (begin, _) in pairwise(spans))
        examples.append(Example(ids[:start], ids[start:stop], record.id, record.source, context))
    return examples


def encode_prompt(record: Record, template: ChatTemplate, tokenizer) -> Example:
    """Tokenise the prompt of a record without a target."""
    messages = list_messages(record)
    last = list_learned(messages)[-1]
    prompt = tokenizer.encode_prompts([template.split_conversation(messages[:last], record.tools)])[0]
    return Example(prompt, [], record.id, record.source)


def truncate_chat(
    chat: RenderedChat,
    record: Record,
    whole: Example,
    template: ChatTemplate,
    *,
    tokenizer,
    max_tokens: int,
) -> TokenizedExample:
    """Tokenise a conversation without as many of its oldest turns as needed for it to fit.

    Where the newest turn alone is too long, its answer is cut at its end; where it leaves no room for one,
    the example is dropped.
    """
    if not record.messages:
        return truncate_turn(record, whole, template, tokenizer=tokenizer, max_tokens=max_tokens)
    if count_excess_tokens(whole, max_tokens) <= 0:
        return TokenizedExample(whole, whole)

    def shorten(count: int) -> Example:
        chat_left = drop_turns(chat, count, record, template=template)
        return encode_chats([(record, chat_left)], tokenizer)[0]

    # The newest turn with an answer stays.
    droppable = sum(start < chat.answers[-1] for start in list_turn_starts(chat.messages)) - 1
    enough = bisect_left(
        range(1, droppable + 1),
        True,
        key=lambda count: count_excess_tokens(shorten(count), max_tokens) <= 0,
    )
    count = min(enough + 1, droppable)
    example = shorten(count) if count else whole
    truncated = cut_end(example, max_tokens)
    return TokenizedExample(
        whole,
        truncated,
        turns_cut=count,
        response_tokens_cut=len(example.response) - len(truncated.response) if truncated else 0,
    )


def drop_turns(chat: RenderedChat, count: int, record: Record, *, template: ChatTemplate) -> RenderedChat:
    """Render a conversation without its `count` oldest turns, and without the answers in them."""
    messages = drop_oldest_turns(chat.messages, count)
    dropped = len(chat.messages) - len(messages)
    first = list_turn_starts(chat.messages)[count]
    answers = [number - dropped for number in chat.answers if number >= first]
    (shorter,) = render_learned(template, messages, answers, tools=record.tools)
    return shorter
