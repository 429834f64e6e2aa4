"""Encode conversations: one text, some spans of which are learned, to ids and the spans of these ids."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

Span = tuple[int, int]
Encoded = tuple[list[int], list[Span]]  # ids, and the characters that each stands for
Encode = Callable[[Sequence[str]], Encoded]  # of parts as one text


def find_spans(encoded: Encoded, parts: Sequence[str], spans: Sequence[Span], encode: Encode) -> Encoded:
    """Find the tokens of a text's spans.

    The ids are those of the whole text, as `apply_chat_template` gives them, unless a token would reach over
    the border of a span: there the text is encoded in two pieces, because a model that is given the text
    before the border has just these tokens in front of it.

    Args:
        encoded: the whole text.
        parts: a template's own text and somebody else's in turn, the template's first. Only in the template's
            are the names of special tokens special tokens.
        spans: of characters in the joined parts, in order, not overlapping.
        encode: encodes parts of the text.

    Returns:
        The ids, and for each span the first of its tokens and the one after its last.
    """
    borders = [border for span in spans for border in span]
    ids, places = find_borders(encoded, parts, borders, encode=encode)
    pairs = zip(places[::2], places[1::2], strict=True)
    return ids, [(start, stop) for start, stop in pairs]


def find_borders(
    encoded: Encoded, parts: Sequence[str], borders: Sequence[int], *, encode: Encode
) -> tuple[list[int], list[int]]:
    """Return the ids, and for each border, a number of characters, the number of ids before it."""
    ids, offsets = encoded
    starts, stops = [start for start, _ in offsets], [stop for _, stop in offsets]
    places = []
    for border in borders:
        place = bisect_left(starts, border)
        if max(stops[:place], default=0) > border:  # a token reaches over the border
            head, tail = split_parts(parts, border)
            inside = [other for other in borders if other < border]
            before, places_before = find_borders(encode(head), head, inside, encode=encode)
            beyond = [other - border for other in borders if other > border]
            after, places_after = find_borders(encode(tail), tail, beyond, encode=encode)
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
