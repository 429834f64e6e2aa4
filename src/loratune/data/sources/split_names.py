"""Detect the split in a file's name: train, val or test."""

import re
from collections.abc import Sequence

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# A split's name may be followed by "set" or "data": trainset, testdata.
SPLIT_NAME = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?:set|data)?(?![a-z])"
)
SHARD = re.compile(r"\d+-of-\d+")


def detect_split(file: str) -> str | None:
    """Return the split in a file's name, or None; the last word counts, such as dev in train_dev."""
    words = SPLIT_NAME.findall(file.lower())
    return SPLIT_WORDS[words[-1]] if words else None


def detect_splits(files: Sequence[str], beside: bool = False) -> list[str | None]:
    """Return the split of each file, by its name.

    Args:
        files: the files' names.
        beside: whether there is other data to train on.

    Returns:
        The splits; None for every file unless some are held out and others remain to train on. So a single
        file named "test" is used as all of the data.
    """
    splits = [detect_split(file) for file in files]
    distinct = {*splits, None} if beside else set(splits)
    return splits if distinct & {"val", "test"} and len(distinct) > 1 else [None] * len(splits)


def strip_split_name(stem: str) -> str:
    """Remove the split from a file's name: "faq-train-00000-of-00002" gives "faq"; "" if nothing is left."""
    title = re.sub(rf"{SHARD.pattern}|{SPLIT_NAME.pattern}", "", stem, flags=re.IGNORECASE).strip(" ._-")
    return title if any(map(str.isalpha, title)) else ""
