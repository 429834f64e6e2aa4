"""Tokenise conversations in a chat template: one example teaches all answers, each with its end token.

prompt                         response
<|im_start|>user\\nHi...        Hello<|im_end|> \\n<|im_start|>user\\nBye... Ciao<|im_end|>
                               learned-------- context-------------------- learned-------
"""

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
    rows = []
    for record in records:
        messages = strip_answers(list_messages(record), markers)
        end_markers = messages != list(list_messages(record))
        answers = [number for number in list_learned(messages, learn) if not is_empty(messages[number])]
        with naming_record(record):
            if record.messages:
                examples = [
                    truncate_chat(chat, record, template, tokenizer=tokenizer, max_tokens=max_tokens)
                    for chat in render_chats(record, messages, answers, template=template)
                ] or [TokenizedExample(Example([], [], record.id, record.source), None)]
            else:
                example = encode_turn(record, messages, template, tokenizer=tokenizer)
                examples = [
                    truncate_turn(record, example, template, tokenizer=tokenizer, max_tokens=max_tokens)
                ]
        rows.append(TokenizedRecord(record, examples, len(answers) if record.messages else 0, end_markers))
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
    record: Record, messages: Sequence[Message], answers: Sequence[int], *, template: ChatTemplate
) -> list[RenderedChat]:
    """Render a conversation; it is one text unless the template writes earlier turns otherwise."""
    template.refuse_hidden_calls(messages)
    return render_learned(template, messages, answers, tools=record.tools) if answers else []


def encode_turn(record: Record, messages: Sequence[Message], template: ChatTemplate, *, tokenizer) -> Example:
    """Tokenise a record of one turn; the response is empty where the output is only an end marker."""
    if is_empty(messages[1]) or not record.has_target:
        prompt = tokenizer.encode_prompts([template.split_conversation(messages[:1])])[0]
        return Example(prompt, [], record.id, record.source)
    (chat,) = render_learned(template, messages, [1])
    return encode_chat(chat, record, tokenizer)


def encode_chat(chat: RenderedChat, record: Record, tokenizer) -> Example:
    """Tokenise a rendered conversation, up to the end of its last learned answer."""
    ids, spans = tokenizer.encode_spans(chat.parts, chat.learned)
    start, stop = spans[0][0], spans[-1][1]
    context = tuple((end - start, begin - start) for (_, end), (begin, _) in pairwise(spans))
    return Example(ids[:start], ids[start:stop], record.id, record.source, context)


def truncate_chat(
    chat: RenderedChat, record: Record, template: ChatTemplate, *, tokenizer, max_tokens: int
) -> TokenizedExample:
    """Tokenise a conversation without as many of its oldest turns as needed for it to fit.

    Where the newest turn alone is too long, its answer is cut at its end; where it leaves no room for one,
    the example is dropped.
    """
    whole = encode_chat(chat, record, tokenizer)
    if count_excess_tokens(whole, max_tokens) <= 0:
        return TokenizedExample(whole, whole)
    last = (
        sum(start < chat.answers[-1] for start in list_turn_starts(chat.messages)) - 1
    )  # turn with an answer
    example, count = whole, 0
    # The fewest turns that are enough, by bisection: without more of them a conversation is never longer.
    fewest, most = 1, last
    while fewest <= most:
        middle = (fewest + most) // 2
        shorter = encode_chat(drop_turns(chat, middle, record, template=template), record, tokenizer)
        if count_excess_tokens(shorter, max_tokens) <= 0:
            most = middle - 1
        else:
            fewest = middle + 1
        if count_excess_tokens(shorter, max_tokens) <= 0 or middle == last:
            example, count = shorter, middle
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
