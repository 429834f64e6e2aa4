"""Gold facts of held-out rows: rows that show nothing else, and how many of these facts retrieval finds."""

import operator
from collections.abc import Sequence
from dataclasses import replace

from loratune.data.example import Record
from loratune.tasks.finqa.facts import format_facts
from loratune.tasks.finqa.records import RECALL_AT


def replace_with_gold_facts(record: Record) -> Record | None:
    """A held-out row that shows its gold facts and nothing else of the page, as in the paper; None where they
    are unknown.
    """
    gold = record.meta.get("gold_facts")
    # Records of the user's may have a `meta` of another form.
    if not gold or not isinstance(gold, dict) or not all(isinstance(text, str) for text in gold.values()):
        return None
    return replace(
        record, input=format_facts(gold, gold), meta=record.meta | {"facts": "gold", "kept_facts": list(gold)}
    )


def compute_fact_recall(records: Sequence[Record]) -> dict[str, float | int] | None:
    """Over rows with known gold facts: the share of rows where all were kept, and of facts that were kept and
    that were among the three ranked first. None where none are known.
    """
    known: list[tuple[dict[str, str], list[str], list[str]]] = []
    for record in records:
        gold, kept, first = (record.meta.get(f"{name}_facts") for name in ("gold", "kept", "first"))
        # Records of the user's may have a `meta` of another form.
        if gold and isinstance(gold, dict) and isinstance(kept, list) and isinstance(first, list):
            known.append((gold, kept, first))
    if not known:
        return None
    found = [sum(name in kept for name in gold) for gold, kept, _ in known]
    wanted = [len(gold) for gold, _, _ in known]
    return {
        "rows": len(known),
        "all_gold_facts": round(sum(map(operator.eq, found, wanted)) / len(known), 4),
        "gold_facts": round(sum(found) / sum(wanted), 4),
        f"recall_at_{RECALL_AT}": round(
            sum(name in first for gold, _, first in known for name in gold) / sum(wanted), 4
        ),
    }
