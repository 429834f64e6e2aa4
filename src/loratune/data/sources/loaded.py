"""What every source gives: records, and what it knows about them."""

from dataclasses import dataclass, field

from loratune.data.records import Record


@dataclass(frozen=True)
class Loaded:
    """Records of one source. `split` is set where the source itself says which part they belong to."""

    name: str
    origin: str  # where they were read, in words
    records: list[Record]
    split: str | None = None  # train, val or test
    left_out: dict[str, int] = field(default_factory=dict)  # reason: rows that could not become records
    own: bool = False  # whether it is a file that the user holds out: it stays whole, and other rows give way
