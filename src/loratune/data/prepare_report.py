"""Statistics of each source in prepare_report.json: counts of rows and tokens."""

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
    *,
    splits: dict[str, list[Record]],
    leaks: RemovedCounts,
) -> dict:
    """Count a source's rows, from those read to those written.

    Args:
        name: the source.
        loaded: everything that was read.
        distinct: all records without duplicates.
        splits: the records that are written, for each split.
        leaks: how many were removed as too similar to rows of another split.
    """
    loaded_parts = [one for one in loaded if one.name == name]
    records = sum(len(one.records) for one in loaded_parts)
    left_out = Counter({reason: count for (source, reason), count in leaks.items() if source == name})
    for one in loaded_parts:
        left_out.update(
            {
                f"{one.split}: {reason}" if one.split else reason: count
                for reason, count in one.left_out.items()
            }
        )
    return {
        "origin": ", ".join(dict.fromkeys(one.origin for one in loaded_parts)),
        "read": records + sum(sum(one.left_out.values()) for one in loaded_parts),
        "left_out": dict(left_out),
        "duplicates": records - sum(record.source == name for record in distinct),
        "splits": {split: sum(record.source == name for record in rows) for split, rows in splits.items()},
        "groups": {
            split: len({record.group for record in rows if record.source == name})
            for split, rows in splits.items()
        },
        **(
            {"files": [asdict(notes) for one in loaded_parts for notes in one.files]}
            if any(one.files for one in loaded_parts)
            else {}
        ),
    }


def compute_token_statistics(examples: Sequence[Example], source: str) -> dict:
    """Count a source's tokens after truncation: prompt and response together, and the responses alone."""
    rows = [row for row in examples if row.source == source]
    lengths = [len(row.prompt) + len(row.response) for row in rows] or [0]
    responses = sum(len(row.learned) for row in rows)
    statistics = (int(np.median(lengths)), int(np.percentile(lengths, 95)), sum(lengths), responses)
    return {"tokens": dict(zip(TOKEN_KINDS, statistics, strict=True))}
