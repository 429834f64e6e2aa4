"""Gold facts of held-out rows: rows that show only them, and how many of them retrieval finds."""

import operator
from collections.abc import Sequence
from dataclasses import replace

from loratune.data.example import Record
from loratune.tasks.finqa.facts import format_facts
from loratune.tasks.finqa.records import RECALL_AT


def replace_with_gold_facts(record: Record) -> Record | None:
    """Replace a held-out row's facts by its gold facts, as in the paper; None if they are unknown."""
    gold = record.meta.get("gold_facts")
    # The `meta` of the user's own records may have any form.
    if not gold or not isinstance(gold, dict) or not all(isinstance(text, str) for text in gold.values()):
        return None
    return replace(
        record, input=format_facts(gold, gold), meta=record.meta | {"facts": "gold", "kept_facts": list(gold)}
    )


def compute_fact_recall(records: Sequence[Record]) -> dict[str, float | int] | None:
    """Compute the recall of retrieval over rows with known gold facts.

    Returns:
        The number of these rows, the share of them that keep all gold facts, and the shares of gold facts
        that are kept and that are among the three ranked first. None if no row's gold facts are known.
    """
    known: list[tuple[dict[str, str], list[str], list[str]]] = []
    for record in records:
        gold, kept, first = (record.meta.get(f"{name}_facts") for name in ("gold", "kept", "first"))
        # The `meta` of the user's own records may have any form.
        if gold and isinstance(gold, dict) and isinstance(kept, list) and isinstance(first, list):
            known.append((gold, kept, first))
    if not known:
        return None
    hits = [sum(name in kept for name in gold) for gold, kept, _ in known]
    totals = [len(gold) for gold, _, _ in known]
    return {
        "rows": len(known),
        "all_gold_facts": round(sum(map(operator.eq, hits, totals)) / len(known), 4),
        "gold_facts": round(sum(hits) / sum(totals), 4),
        f"recall_at_{RECALL_AT}": round(
            sum(name in first for gold, _, first in known for name in gold) / sum(totals), 4
        ),
    }
