"""Split rows into train, val and test: near-duplicates stay together, and no split is left empty.

A row's split usually depends on its group and the seed alone (`assign_split`). Three kinds of data need more:

* one group has so many rows that a split would consist of it alone: its rows are split one by one;
* a source is so small, or its groups are so large, that chance leaves a split nearly empty: groups are dealt
  out in turn;
* a source has splits of its own, but none for validation: that is drawn from its training rows.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loratune.data.compared_texts import get_compared_texts, make_prompt_key, normalize_text
from loratune.data.dedup import (
    assign_groups,
    find_shared_sentences,
    group_by_edges,
    link_equal,
    link_openings,
    split_sentences,
)
from loratune.data.example import Record
from loratune.data.sources.loaded import SourceData

HELD_OUT = ("val", "test")
SPLITS = ("train", *HELD_OUT)
# A group is too large if it holds most rows of a source, or more than this many rows and more than this share
# of them, twice the default `val_fraction`. A passage with a handful of questions is not; Dolly's largest
# group has 42 rows.
LARGE_GROUP_ROWS, LARGE_GROUP_SHARE = 10, 0.1
QUOTE_LENGTH = 60  # characters of a quoted text

Notes = dict[str, list[str]]  # by source


@dataclass(frozen=True)
class SplitResult:
    records: list[Record]  # in their order, with their groups
    splits: list[str]  # the split of each
    notes: Notes  # what is unusual about a source, and how it was handled


def split_records(
    records: Sequence[Record],
    own_splits: Mapping[str, str | None],
    *,
    drawn_splits: Mapping[str | None, Collection[str]],
    seed: int,
    val_fraction: float,
) -> SplitResult:
    """Assign a group and a split to each record.

    Args:
        records: the records; a group that one already has is the user's, and stays in one split.
        own_splits: the split that a record's source specifies, by the record's id.
        drawn_splits: the held-out splits that are drawn from the rows of a split, or of no split (None).
        seed: of the random assignment.
        val_fraction: the share of each held-out split.
    """
    notes: Notes = defaultdict(list)
    note_shared_sentences(records, notes)
    grouped = break_up_large_groups(records, notes)
    record_splits = [own_splits[record.id] for record in grouped]
    splits: dict[str, str] = {}  # by group; a group may be in several sources
    by_id: dict[str, str] = {}  # by id, for the records whose split is drawn
    for source in sorted({record.source for record in grouped}):
        placed = [
            (record, split)
            for record, split in zip(grouped, record_splits, strict=True)
            if record.source == source
        ]
        free = [record for record, split in placed if split in drawn_splits]
        origin = next((split for _, split in placed if split in drawn_splits), None)
        drawn = [split for split in HELD_OUT if split in drawn_splits.get(origin, ())] if val_fraction else []
        assigned = assign_splits(
            Counter(record.group for record in free), splits, drawn, seed=seed, val_fraction=val_fraction
        )
        by_id |= {record.id: assigned[record.group] for record in free}
        splits |= {record.group: assigned[record.group] for record in free if own_splits[record.id] is None}
        if len(free) < len(placed) or origin:
            note_drawn_rows(source, [by_id[record.id] for record in free], notes)
        note_one_sided_splits(source, [(record, assigned[record.group]) for record in free], notes)
    all_splits = [
        by_id.get(record.id) or split or "train" for record, split in zip(grouped, record_splits, strict=True)
    ]
    return SplitResult(grouped, all_splits, {source: notes[source] for source in sorted(notes)})


def break_up_large_groups(records: Sequence[Record], notes: Notes) -> list[Record]:
    """Assign groups to the records; only the user's own may be too large.

    In a group that is too large only equal prompts and chats with the same opening stay together; if these
    groups are still too large, only the user's groups do.
    """
    grouped = assign_groups(records)
    note_dissolved_groups(records, grouped, notes)
    for link in (link_equal_prompts, link_user_groups):
        large = find_large_groups(grouped)
        numbers = [number for number, record in enumerate(grouped) if record.group in large]
        if numbers:
            members = [records[number] for number in numbers]
            for number, record in zip(numbers, group_by_edges(members, link(members)), strict=True):
                grouped[number] = record
    note_user_groups(records, notes)
    return grouped


def link_equal_prompts(records: Sequence[Record]) -> list[np.ndarray]:
    prompts = link_equal([make_prompt_key(record) for record in records])
    return [prompts, link_openings(records), *link_user_groups(records)]


def link_user_groups(records: Sequence[Record]) -> list[np.ndarray]:
    return [link_equal([record.group for record in records])]


def find_large_groups(records: Sequence[Record]) -> set[str]:
    """Find the groups that hold too many rows of a source.

    Where a source has fewer groups than there are splits, each with several rows is too large.
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
    assigned: Mapping[str, str],
    drawn: Sequence[str],
    *,
    seed: int,
    val_fraction: float,
) -> dict[str, str]:
    """Assign a split to each group of one source.

    Args:
        sizes: rows of each group.
        assigned: the splits of groups that have one already, from another source.
        drawn: the held-out splits that are drawn.
        seed: of the random assignment.
        val_fraction: the share of each held-out split.
    """
    by_chance = {
        group: assigned.get(group) or assign_split(group, seed, val_fraction, drawn=drawn) for group in sizes
    }
    rows = Counter({split: 0 for split in ("train", *drawn)})
    for group, split in by_chance.items():
        rows[split] += sizes[group]
    share = {split: val_fraction for split in drawn} | {"train": 1 - val_fraction * len(drawn)}
    targets = {split: share[split] * sum(sizes.values()) for split in share}
    if all(max(1, targets[split] / 2) <= rows[split] <= max(1, 3 * targets[split]) for split in share):
        return by_chance
    return deal_groups(sizes, assigned, drawn, seed=seed, val_fraction=val_fraction)


def deal_groups(
    sizes: Mapping[str, int],
    assigned: Mapping[str, str],
    drawn: Sequence[str],
    *,
    seed: int,
    val_fraction: float,
) -> dict[str, str]:
    """Deal out groups, in an order that depends on the seed, until each split has about its share.

    The arguments are those of `assign_splits`.
    """
    splits = {group: split for group, split in assigned.items() if group in sizes}
    remaining = sorted(sizes.keys() - splits.keys(), key=lambda group: (hash_to_fraction(group, seed), group))
    rows = sum(sizes.values())
    target_rows = max(1, min(round(val_fraction * rows), (rows - 1) // max(len(drawn), 1)))
    for number, split in enumerate(drawn):
        reserved = len(drawn) - number  # a group for each split that follows, and for training
        room = target_rows - sum(sizes[group] for group, other in splits.items() if other == split)
        chosen: list[str] = []
        for group in remaining:
            if sizes[group] <= room and len(chosen) < len(remaining) - reserved:
                chosen.append(group)
                room -= sizes[group]
        if room == target_rows and len(remaining) > 1:
            chosen = [min(remaining, key=sizes.__getitem__)]
        splits |= dict.fromkeys(chosen, split)
        remaining = [group for group in remaining if group not in splits]
    return splits | dict.fromkeys(remaining, "train")


def note_shared_sentences(records: Sequence[Record], notes: Notes) -> None:
    for source, rows in group_by_source(records).items():
        prompts = [make_prompt_key(record) for record in rows]
        shared = {
            text: count
            for texts in zip(*map(get_compared_texts, rows), strict=True)
            for text, count in find_shared_sentences(texts, prompts).items()
        }
        if shared:
            commonest = max(shared, key=lambda text: (shared[text], len(text), text))
            sentences = (text for one in rows for text in list_sentences(one))
            original = min(text for text in sentences if normalize_text(text) == commonest)
            others = f", and {len(shared) - 1:,} more texts are in very many" if len(shared) > 1 else ""
            notes[source].append(
                f"{quote(original)} is in {shared[commonest]:,} of {len(set(prompts)):,} prompts{others}: "
                "this does not make rows near-duplicates; rows that must stay in one split need a common "
                "group"
            )


def note_dissolved_groups(records: Sequence[Record], grouped: Sequence[Record], notes: Notes) -> None:
    """Note the groups that are too large and not the user's own."""
    large = find_large_groups(grouped)
    pairs = list(zip(records, grouped, strict=True))
    for source, sizes in count_groups_by_source(grouped).items():
        dissolved = {group: size for group, size in sizes.items() if group in large and size > 1}
        largest = max(dissolved, key=lambda group: (dissolved[group], group), default="")
        rows = [record for record, other in pairs if other.group == largest and record.source == source]
        if not rows or is_user_group(rows):
            continue
        notes[source].append(
            f"{sum(dissolved.values()):,} of {sum(sizes.values()):,} rows are so similar that whole groups "
            f"would leave a split empty or one-sided (the largest group: {len(rows):,} rows with "
            f"{quote(find_common_text(rows))}); they are split row by row, so held-out rows are similar to "
            "training rows"
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
                f"{size:,} of {rows:,} rows have the group {quote(group)}, which stays in one split; "
                "smaller groups, or no group, give more meaningful splits"
            )


def note_drawn_rows(source: str, splits: Sequence[str], notes: Notes) -> None:
    counts = Counter(split for split in splits if split != "train")
    for split, count in counts.items():
        notes[source].append(
            f"it has no rows for {split} of its own; {count:,} of its training rows are used for that"
        )


def note_one_sided_splits(source: str, rows: Sequence[tuple[Record, str]], notes: Notes) -> None:
    for split in HELD_OUT:
        held_out = [record for record, other in rows if other == split]
        if len(held_out) > 1 and len({record.group for record in held_out}) == 1:
            notes[source].append(
                f"all {len(held_out):,} rows in {split} are of one group "
                f"({quote(find_common_text(held_out))}); a larger `val_fraction` holds out more groups"
            )


def group_by_source(records: Sequence[Record]) -> dict[str, list[Record]]:
    by_source: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_source[record.source].append(record)
    return by_source


def find_common_text(records: Sequence[Record]) -> str:
    """Return the longest sentence that most of the records have; without one, the first question."""
    counts = Counter(text for one in records for text in set(list_sentences(one)))
    common = [text for text, count in counts.items() if 2 * count > len(records)]
    first = min(get_compared_texts(record).question for record in records)
    return max(common, key=lambda text: (len(text), text), default=first)


def list_sentences(record: Record) -> list[str]:
    return [sentence for text in get_compared_texts(record) for sentence in split_sentences(text)]


def quote(text: str) -> str:
    text = " ".join(text.split())
    return f'"{text if len(text) <= QUOTE_LENGTH else text[:QUOTE_LENGTH] + "..."}"'


def choose_drawn_splits(loaded: Sequence[SourceData]) -> dict[str | None, Collection[str]]:
    """Choose the held-out splits that are drawn, and from which rows.

    A split that the user's own files hold out is complete, and then no test is drawn either, because training
    needs only validation. Where a data set on the hub has a test split but no validation split, and no other
    data has one, validation is drawn from its training rows.

    Returns:
        The drawn splits, for rows whose source names no split (None) and for those that it names "train".
    """
    user_splits = {one.split for one in loaded if one.own}
    drawn: dict[str | None, Collection[str]] = {None: {"val"} - user_splits if user_splits else set(HELD_OUT)}
    if not {one.split for one in loaded} & {None, "val"}:
        drawn["train"] = {"val"}
    return drawn


def assign_split(group: str, seed: int, val_fraction: float, *, drawn: Sequence[str] = HELD_OUT) -> str:
    """Assign a group to one of the `drawn` splits with probability `val_fraction` each, else to train."""
    share = hash_to_fraction(group, seed)
    return next((split for number, split in enumerate(drawn, 1) if share < number * val_fraction), "train")


def hash_to_fraction(group: str, seed: int) -> float:
    """Map a group and a seed to a pseudo-random number from 0 to 1."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
