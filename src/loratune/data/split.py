"""Rows divided into train, val and test: near-duplicates stay together, and no part is left empty where that
can be helped.

Of ordinary data a row's part is a function of its group and the seed alone (`split_of`). Three kinds of data
need more:

* one group holds so many rows that a part would consist of it: its rows are divided one by one;
* a source is so small, or its groups are so large, that chance leaves a part nearly empty: groups are dealt
  out in turn;
* a source has parts of its own, but none to validate with: that is taken from its training rows.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from loratune.data.dedup import (
    assign_groups,
    find_shared_sentences,
    group_by_edges,
    link_equal,
    make_prompt_key,
    normalize_text,
    split_sentences,
)
from loratune.data.example import Record
from loratune.data.sources.loaded import SourceData

HELD_OUT = ("val", "test")
SPLITS = ("train", *HELD_OUT)
# A group is too large if it holds most rows of a source, or more than this many and more than this share of
# them: twice what the default --val-fraction holds out. A passage with a handful of questions never is;
# Dolly's largest group has 42 rows.
LARGE_GROUP_ROWS, LARGE_GROUP_SHARE = 10, 0.1
QUOTE_LENGTH = 60  # characters of a text that is quoted

Notes = dict[str, list[str]]  # by source


@dataclass(frozen=True)
class SplitResult:
    records: list[Record]  # in their order, with their groups
    splits: list[str]  # the part of each
    notes: Notes  # what is unusual about a source, and what was done about it


def split_records(
    records: Sequence[Record],
    own_splits: Mapping[str, str | None],
    *,
    drawn_splits: Mapping[str | None, Collection[str]],
    seed: int,
    val_fraction: float,
) -> SplitResult:
    """The group and the part of each record.

    `own_splits`, by id, has the parts that a source gives itself, and `drawn` those that are drawn from rows
    of such a part (None: from rows without one). A group that a record has is the user's, and stays whole.
    """
    notes: Notes = defaultdict(list)
    note_shared_sentences(records, notes)
    together = break_up_large_groups(records, notes)
    own = [own_splits[record.id] for record in together]
    splits: dict[str, str] = {}  # of their groups, which may be in several sources
    by_id: dict[str, str] = {}  # of the records whose part is drawn
    for source in sorted({record.source for record in together}):
        rows = [
            (record, split) for record, split in zip(together, own, strict=True) if record.source == source
        ]
        free = [record for record, split in rows if split in drawn_splits]
        origin = next((split for _, split in rows if split in drawn_splits), None)
        wanted = (
            [split for split in HELD_OUT if split in drawn_splits.get(origin, ())] if val_fraction else []
        )
        found = assign_splits(
            Counter(record.group for record in free), splits, wanted, seed=seed, val_fraction=val_fraction
        )
        by_id |= {record.id: found[record.group] for record in free}
        splits |= {record.group: found[record.group] for record in free if own_splits[record.id] is None}
        if len(free) < len(rows) or origin:
            note_drawn_rows(source, [by_id[record.id] for record in free], notes)
        note_one_sided_splits(source, [(record, found[record.group]) for record in free], notes)
    parts = [by_id.get(record.id) or split or "train" for record, split in zip(together, own, strict=True)]
    return SplitResult(together, parts, {source: notes[source] for source in sorted(notes)})


def break_up_large_groups(records: Sequence[Record], notes: Notes) -> list[Record]:
    """The records with their groups, of which only the user's may be too large.

    Of a group that is too large only the same prompts stay together, and if these are too many, no rows but
    the user's groups.
    """
    together = assign_groups(records)
    note_dissolved_groups(records, together, notes)
    for ties in ([make_prompt_key, get_user_group], [get_user_group]):
        large = find_large_groups(together)
        numbers = [number for number, record in enumerate(together) if record.group in large]
        if numbers:
            parted = [records[number] for number in numbers]
            edges = [link_equal([tie(record) for record in parted]) for tie in ties]
            for number, record in zip(numbers, group_by_edges(parted, edges), strict=True):
                together[number] = record
    note_user_groups(records, notes)
    return together


def get_user_group(record: Record) -> str:
    return record.group


def find_large_groups(records: Sequence[Record]) -> set[str]:
    """Groups that hold too many rows of a source; all that hold several, where they are too few to fill three
    parts.
    """
    large = set()
    for sizes in count_groups_by_source(records).values():
        rows = sum(sizes.values())
        limit = (
            1
            if len(sizes) < len(SPLITS)
            else min(max(LARGE_GROUP_ROWS, LARGE_GROUP_SHARE * rows), max(rows / 2, 1))
        )
        large |= {group for group, size in sizes.items() if size > limit}
    return large


def count_groups_by_source(records: Sequence[Record]) -> dict[str, Counter[str]]:
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        sizes[record.source][record.group] += 1
    return sizes


def assign_splits(
    sizes: Mapping[str, int],
    taken: Mapping[str, str],
    wanted: Sequence[str],
    *,
    seed: int,
    val_fraction: float,
) -> dict[str, str]:
    """The part of each group of one source: one of `wanted`, or train. Those of `taken` stay as they are."""
    by_chance = {
        group: taken.get(group) or assign_split(group, seed, val_fraction, wanted) for group in sizes
    }
    rows = Counter({split: 0 for split in ("train", *wanted)})
    for group, split in by_chance.items():
        rows[split] += sizes[group]
    share = {split: val_fraction for split in wanted} | {"train": 1 - val_fraction * len(wanted)}
    asked = {split: share[split] * sum(sizes.values()) for split in share}
    if all(max(1, asked[split] / 2) <= rows[split] <= max(1, 3 * asked[split]) for split in share):
        return by_chance
    return deal_groups(sizes, taken, wanted, seed=seed, val_fraction=val_fraction)


def deal_groups(
    sizes: Mapping[str, int],
    taken: Mapping[str, str],
    wanted: Sequence[str],
    *,
    seed: int,
    val_fraction: float,
) -> dict[str, str]:
    """As many rows in each part as are wanted of it, or a few more or fewer, in the order that the seed gives
    the groups.
    """
    parts = {group: split for group, split in taken.items() if group in sizes}
    left = sorted(sizes.keys() - parts.keys(), key=lambda group: (hash_to_fraction(group, seed), group))
    rows = sum(sizes.values())
    aim = max(1, min(round(val_fraction * rows), (rows - 1) // max(len(wanted), 1)))
    for number, split in enumerate(wanted):
        reserved = len(wanted) - number  # a group for each part that follows, and for training
        room = aim - sum(sizes[group] for group, other in parts.items() if other == split)
        chosen: list[str] = []
        for group in left:
            if sizes[group] <= room and len(chosen) < len(left) - reserved:
                chosen.append(group)
                room -= sizes[group]
        if room == aim and len(left) > 1:
            chosen = [min(left, key=sizes.__getitem__)]
        parts |= dict.fromkeys(chosen, split)
        left = [group for group in left if group not in parts]
    return parts | dict.fromkeys(left, "train")


def note_shared_sentences(records: Sequence[Record], notes: Notes) -> None:
    for source, own in group_by_source(records).items():
        prompts = [make_prompt_key(record) for record in own]
        shared = {
            text: count
            for texts in ([record.instruction for record in own], [record.input for record in own])
            for text, count in find_shared_sentences(texts, prompts).items()
        }
        if shared:
            most = max(shared, key=lambda text: (shared[text], len(text), text))
            written = (
                text
                for one in own
                for text in (*split_sentences(one.instruction), *split_sentences(one.input))
            )
            most_written = min(text for text in written if normalize_text(text) == most)
            others = f", and {len(shared) - 1:,} more texts are in very many" if len(shared) > 1 else ""
            notes[source].append(
                f"{quote(most_written)} is in {shared[most]:,} of {len(set(prompts)):,} prompts{others}: "
                "this does not make rows alike; rows that must stay in one part need a common group"
            )


def note_dissolved_groups(records: Sequence[Record], together: Sequence[Record], notes: Notes) -> None:
    """Of groups that are too large, unless they are the user's own."""
    large = find_large_groups(together)
    pairs = list(zip(records, together, strict=True))
    for source, sizes in count_groups_by_source(together).items():
        found = {group: size for group, size in sizes.items() if group in large and size > 1}
        largest = max(found, key=lambda group: (found[group], group), default="")
        rows = [record for record, other in pairs if other.group == largest and record.source == source]
        if not rows or is_user_group(rows):
            continue
        notes[source].append(
            f"{sum(found.values()):,} of {sum(sizes.values()):,} rows are so much alike that whole groups "
            "would leave a part "
            f"empty or one-sided (the largest group: {len(rows):,} rows with "
            f"{quote(find_common_text(rows))}); "
            "they are divided row by row, so held-out rows are like training rows"
        )


def is_user_group(records: Sequence[Record]) -> bool:
    groups = {record.group for record in records}
    return len(groups) == 1 and "" not in groups


def note_user_groups(records: Sequence[Record], notes: Notes) -> None:
    for source, sizes in count_groups_by_source(records).items():
        rows = sum(sizes.values())
        group, size = max(sizes.items(), key=lambda pair: (pair[1] if pair[0] else 0, pair[0]))
        if group and 1 < rows < 2 * size:
            notes[source].append(
                f"{size:,} of {rows:,} rows have the group {quote(group)}, which stays in one part; "
                "smaller groups, or no group, give a split that says more"
            )


def note_drawn_rows(source: str, splits: Sequence[str], notes: Notes) -> None:
    counts = Counter(split for split in splits if split != "train")
    for split, count in counts.items():
        notes[source].append(
            f"it has no rows for {split} of its own; {count:,} of its training rows are taken for that"
        )


def note_one_sided_splits(source: str, rows: Sequence[tuple[Record, str]], notes: Notes) -> None:
    for split in HELD_OUT:
        held_out = [record for record, other in rows if other == split]
        if len(held_out) > 1 and len({record.group for record in held_out}) == 1:
            notes[source].append(
                f"all {len(held_out):,} rows in {split} are of one group "
                f"({quote(find_common_text(held_out))}); "
                "a larger --val-fraction holds out more groups"
            )


def group_by_source(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record.source].append(record)
    return found


def find_common_text(records: Sequence[Record]) -> str:
    """The longest sentence that most of the records have; the first instruction where there is none."""
    counts = Counter(
        text for one in records for text in {*split_sentences(one.instruction), *split_sentences(one.input)}
    )
    common = [text for text, count in counts.items() if 2 * count > len(records)]
    return max(
        common, key=lambda text: (len(text), text), default=min(record.instruction for record in records)
    )


def quote(text: str) -> str:
    text = " ".join(text.split())
    return f'"{text if len(text) <= QUOTE_LENGTH else text[:QUOTE_LENGTH] + "..."}"'


def choose_drawn_splits(loaded: Sequence[SourceData]) -> dict[str | None, Collection[str]]:
    """The parts that are drawn from rows whose source names none (None) and from those that theirs names
    "train".

    What the user holds out is the whole of its part, and then no test is drawn either: validation alone is
    needed for training. Where a data set on the hub has a test but no validation, and nothing else has any,
    that is drawn from its train.
    """
    own = {one.split for one in loaded if one.own}
    drawn: dict[str | None, Collection[str]] = {None: {"val"} - own if own else set(HELD_OUT)}
    if not {one.split for one in loaded} & {None, "val"}:
        drawn["train"] = {"val"}
    return drawn


def assign_split(group: str, seed: int, val_fraction: float, wanted: Sequence[str] = HELD_OUT) -> str:
    """Each of the `wanted` parts gets `val_fraction` of the groups, train the rest."""
    share = hash_to_fraction(group, seed)
    return next((split for number, split in enumerate(wanted, 1) if share < number * val_fraction), "train")


def hash_to_fraction(group: str, seed: int) -> float:
    """A number from 0 to 1 that looks random and is a function of group and seed alone."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
