"""Which part of the data a file is for, training, validation or test, as its name says."""

import re
from collections.abc import Sequence

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Also in one word with "set" or "data": trainset, testdata.
PART_WORD = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?:set|data)?(?![a-z])"
)
SHARD = re.compile(r"\d+-of-\d+")


def detect_split(file: str) -> str | None:
    """train, val or test, as the file's name says; None if it says nothing. Of several words the last counts:
    train_dev.
    """
    words = PART_WORD.findall(file.lower())
    return SPLIT_WORDS[words[-1]] if words else None


def detect_splits(files: Sequence[str], beside: bool = False) -> list[str | None]:
    """The part that each file is for; None for all unless one is held out and something else is there to
    train on.

    `beside` says that there is other data. A file that alone is named "test" is all the data there is.
    """
    parts = [detect_split(file) for file in files]
    different = {*parts, None} if beside else set(parts)
    return parts if different & {"val", "test"} and len(different) > 1 else [None] * len(parts)


def strip_split_name(stem: str) -> str:
    """What a data set is called whose parts have such names: "faq" of "faq-train-00000-of-00002"; "" if
    nothing is left.
    """
    bare = re.sub(rf"{SHARD.pattern}|{PART_WORD.pattern}", "", stem, flags=re.IGNORECASE).strip(" ._-")
    return bare if any(map(str.isalpha, bare)) else ""
