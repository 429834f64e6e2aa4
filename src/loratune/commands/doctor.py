"""`loratune doctor`: can this machine train, and what will be slow and why."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from loratune.config.base import format_flag
from loratune.config.doctor import DoctorConfig
from loratune.config.prepare import PrepareConfig
from loratune.config.shared import DEFAULT_ADAPTER, RUNS_FOLDER
from loratune.config.train import TrainConfig
from loratune.doctor import hardware, packages, storage
from loratune.doctor.finding import Finding
from loratune.errors import format_named_settings
from loratune.system.console import console, say

OUTPUTS = (RUNS_FOLDER, DEFAULT_ADAPTER.parent, PrepareConfig.model_fields["out"].default)
MARKS = {"ok": ("✓", "green"), "warning": ("!", "bold yellow"), "problem": ("✗", "bold red")}


def run(settings: DoctorConfig) -> dict:
    with console.status("Looking at this machine ..."):
        sections = examine(settings)
    show_findings(sections)
    findings = [
        {"section": name, **asdict(finding)} for name, section in sections.items() for finding in section
    ]
    return {"can_train": all(finding["level"] != "problem" for finding in findings), "findings": findings}


def examine(settings: DoctorConfig) -> dict[str, list[Finding]]:
    """Inspect the machine, then run the checks, which look at nothing but what was inspected."""
    rooms = {
        "machine": (hardware.CHECKS, hardware.inspect_hardware(settings.threads, settings.device)),
        "programs": (packages.CHECKS, packages.inspect_packages()),
        "places": (storage.CHECKS, storage.inspect_storage(Path("."), OUTPUTS, RUNS_FOLDER)),
    }
    return {
        name: [write_options(finding) for check in checks for finding in check(facts)]
        for name, (checks, facts) in rooms.items()
    }


def write_options(finding: Finding) -> Finding:
    """Write the settings in the remedy as options of `loratune train`."""
    remedy = format_named_settings(finding.remedy, format_flag, TrainConfig.model_fields.keys())
    return replace(finding, remedy=remedy)


def show_findings(sections: Mapping[str, Sequence[Finding]]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, findings in sections.items():
        table.add_row("", Text(name.capitalize(), style="bold"), "")
        for finding in findings:
            mark, style = MARKS[finding.level]
            table.add_row(Text(mark, style=style), finding.about, format_finding(finding, style))
        table.add_row("", "", "")
    console.print(table)
    say(describe_verdict([finding.level for findings in sections.values() for finding in findings]))


def format_finding(finding: Finding, style: str) -> Text:
    text = Text(finding.found)
    return text.append(f"\n→ {finding.remedy}", style=style) if finding.remedy else text


def describe_verdict(levels: Sequence[str]) -> str:
    warnings, problems = levels.count("warning"), levels.count("problem")
    if problems:
        these = "this problem is" if problems == 1 else f"these {problems} problems are"
        return f"Training is not possible until {these} fixed (✗)."
    slower = f", but see the {'warning' if warnings == 1 else f'{warnings} warnings'} (!)" if warnings else ""
    return f"This machine can train{slower}. How long a run takes: loratune train --dry-run"
