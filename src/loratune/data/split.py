"""Which part a record belongs to: a function of its group and the seed, of nothing else."""

import hashlib
from collections import Counter

from loratune.data.records import Record

SPLITS = ("train", "val", "test")


def split_of(group: str, seed: int, val_fraction: float) -> str:
    """val and test each get `val_fraction` of the groups, train the rest."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < val_fraction:
        return "val"
    return "test" if share < 2 * val_fraction else "train"


def without_leaks(parts: dict[str, list[Record]]) -> tuple[dict[str, list[Record]], Counter[str]]:
    """No group in two parts: train gives up what val or test hold, val what test holds.

    Only where a source fixes its own parts can there be anything to give up. Also returns how many records left each source.
    """
    kept, removed = {}, Counter()
    held_out: set[str] = set()
    for split in reversed(SPLITS):
        kept[split] = [record for record in parts[split] if record.group not in held_out]
        removed.update(record.source for record in parts[split] if record.group in held_out)
        held_out |= {record.group for record in parts[split]}
    return {split: kept[split] for split in SPLITS}, removed
