"""Show what a command would read and write, and how long it would take, for --dry-run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loratune.system.console import say

TIMING = "Timing a small piece of the work ..."


@dataclass(frozen=True)
class Plan:
    reads: Mapping[str, str]  # what -> how much of it, in words
    writes: Sequence[Path]
    seconds: float | None  # None where it cannot be estimated
    basis: str  # what the time was derived from, or why there is none


def show_plan(plan: Plan) -> dict:
    """Print the plan, and return it as the command's result."""
    existing = [path for path in plan.writes if path.exists()]
    for what, amount in plan.reads.items():
        say(f"Would read {what}: {amount}")
    for path in plan.writes:
        say(f"Would {'overwrite' if path in existing else 'write'} {path}")
    length = (
        "How long it takes is not known"
        if plan.seconds is None
        else f"Would take about {format_duration(plan.seconds)}"
    )
    say(f"{length}: {plan.basis}.")
    say("Nothing was written (--dry-run).")
    return {
        "dry_run": True,
        "reads": dict(plan.reads),
        "writes": list(map(str, plan.writes)),
        "overwrites": list(map(str, existing)),
        "about_seconds": plan.seconds and round(plan.seconds, 1),
    }


def format_duration(seconds: float) -> str:
    """Format seconds with no more digits than an estimate deserves."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
