"""Encode conversations: one text, some spans of which are learned, to ids and the spans of these ids."""

from collections.abc import Callable, Sequence

Span = tuple[int, int]
Encode = Callable[[Sequence[str]], tuple[list[int], list[Span]]]  # parts -> the ids and their characters


def encode_spans(encode: Encode, parts: Sequence[str], spans: Sequence[Span]) -> tuple[list[int], list[Span]]:
    """Encode a text as a whole, and find the tokens of its spans.

    The ids are those of the whole text, as `apply_chat_template` gives them, unless a token would reach over
    the border of a span: there the text is encoded in two pieces, because a model that is given the text
    before the border has just these tokens in front of it.

    Args:
        encode: encodes parts as one text, and says which characters each id stands for.
        parts: a template's own text and somebody else's in turn, the template's first. Only in the template's
            are the names of special tokens special tokens.
        spans: of characters in the joined parts, in order, not overlapping.

    Returns:
        The ids, and for each span the first of its tokens and the one after its last.
    """
    borders = [border for span in spans for border in span]
    ids, places = encode_with_borders(encode, parts, borders)
    pairs = zip(places[::2], places[1::2], strict=True)
    return ids, [(start, stop) for start, stop in pairs]


def encode_with_borders(
    encode: Encode, parts: Sequence[str], borders: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the ids, and for each border, a number of characters, the number of ids before it."""
    ids, offsets = encode(parts)
    places = []
    for border in borders:
        place = next((number for number, (start, _) in enumerate(offsets) if start >= border), len(ids))
        if any(stop > border for _, stop in offsets[:place]):  # a token reaches over the border
            head, tail = split_parts(parts, border)
            before, places_before = encode_with_borders(
                encode, head, [other for other in borders if other < border]
            )
            after, places_after = encode_with_borders(
                encode, tail, [other - border for other in borders if other > border]
            )
            at = [len(before)] * borders.count(border)
            return before + after, [*places_before, *at, *(len(before) + other for other in places_after)]
        places.append(place)
    return ids, places


def split_parts(parts: Sequence[str], border: int) -> tuple[list[str], list[str]]:
    """Cut parts in two after `border` characters; both begin with a template's part, perhaps an empty one."""
    start = 0
    for number, part in enumerate(parts):
        if border <= start + len(part):
            cut = border - start
            filler = [] if number % 2 == 0 else [""]
            return [*parts[:number], part[:cut]], [*filler, part[cut:], *parts[number + 1 :]]
        start += len(part)
    return list(parts), [""]
