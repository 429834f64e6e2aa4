"""What prepare_report.json says of each source: counts of rows and tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from loratune.data.example import Example, Record
from loratune.data.leakage import RemovedCounts
from loratune.data.sources.loaded import SourceData

TOKEN_KINDS = ("median", "95 %", "total", "in responses")


def count_source_rows(
    name: str,
    loaded: Sequence[SourceData],
    distinct: Sequence[Record],
    parts: dict[str, list[Record]],
    leaks: RemovedCounts,
) -> dict:
    """From rows read to rows written. `distinct` are all records but duplicates; `leaks` gave way to rows of
    another part.
    """
    own = [one for one in loaded if one.name == name]
    records = sum(len(one.records) for one in own)
    left_out = Counter({reason: count for (source, reason), count in leaks.items() if source == name})
    for one in own:
        left_out.update(
            {
                f"{one.split}: {reason}" if one.split else reason: count
                for reason, count in one.left_out.items()
            }
        )
    return {
        "origin": ", ".join(dict.fromkeys(one.origin for one in own)),
        "read": records + sum(sum(one.left_out.values()) for one in own),
        "left_out": dict(left_out),
        "duplicates": records - sum(record.source == name for record in distinct),
        "splits": {split: sum(record.source == name for record in part) for split, part in parts.items()},
        "groups": {
            split: len({record.group for record in part if record.source == name})
            for split, part in parts.items()
        },
        **(
            {"files": [asdict(notes) for one in own for notes in one.files]}
            if any(one.files for one in own)
            else {}
        ),
    }


def compute_token_statistics(examples: Sequence[Example], source: str) -> dict:
    """Tokens of prompt and response together, and of the responses alone, after shortening."""
    own = [row for row in examples if row.source == source]
    lengths = [len(row.prompt) + len(row.response) for row in own] or [0]
    responses = sum(len(row.response) for row in own)
    statistics = (int(np.median(lengths)), int(np.percentile(lengths, 95)), sum(lengths), responses)
    return {"tokens": dict(zip(TOKEN_KINDS, statistics, strict=True))}
