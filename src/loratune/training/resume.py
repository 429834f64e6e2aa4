"""Resume a run: check that everything it depends on is unchanged since it began, or record what changed."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

from loratune.data.chat_template import ChatTemplate
from loratune.data.template import PromptTemplate
from loratune.errors import UserError
from loratune.models.resolve import ResolvedModel
from loratune.system.hardware import identify_processor
from loratune.system.messages import warn
from loratune.training.run_folder import RunFolder

# The packages that token ids, data order and the bits of a training depend on.
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "loratune")
# Inputs that runs of the first version did not record.
LATER_INPUTS = ("config", "tokenizer")
# Inputs that older runs' facts.json does not hold, with the values that they had then.
OLD_RUN_DEFAULTS = {"bos": False}
OLD_SETTINGS = {"learn": "all"}  # the same for settings


@dataclass(frozen=True)
class RunChange:
    """An input of a run that is not as it was when the run began."""

    name: str
    then: object
    now: object
    is_setting: bool = False

    def __str__(self) -> str:
        name = f"`{self.name}`" if self.is_setting else self.name
        return f"{name}: {shorten_value(self.then)} when the run began, {shorten_value(self.now)} now"

    def to_json(self, when: str) -> dict[str, object]:
        """Return the change in the form of facts.json, where a setting is named by its option."""
        name = f"--{self.name.replace('_', '-')}" if self.is_setting else self.name
        return {"when": when, "name": name, "then": self.then, "now": self.now}


def shorten_value(value: object) -> str:
    """Format a value for a message: of a sha256 its first digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)


def collect_run_inputs(
    model: ResolvedModel,
    template: PromptTemplate,
    *,
    data: Mapping[str, str],
    settings: Mapping[str, Any],
    device: str,
    bos: Sequence[int],
) -> dict[str, Any]:
    """Collect everything that a run's adapter depends on, down to the last bit.

    Args:
        model: the base model.
        template: the prompt template.
        data: sha256 of each file, "train" and "val".
        settings: all settings of the run, as JSON has them.
        device: cpu or cuda.
        bos: the ids that each prompt begins with.
    """
    dated = isinstance(template, ChatTemplate) and template.date
    return {
        "base": model.fingerprint,
        "config": model.config,
        "tokenizer": model.tokenizer,
        **{f"{name}.jsonl": content for name, content in data.items()},
        "template": hashlib.sha256(json.dumps(template.to_dict()).encode()).hexdigest(),
        **({"template_date": dated} if dated else {}),
        **{package: version(package) for package in PACKAGES},
        "processor": identify_processor(device),
        "bos": bool(bos),
        "settings": dict(settings),
    }


def has_bos_prompts(folder: RunFolder) -> bool:
    """Return whether the prompts of a run begin with BOS; runs that do not record it had none."""
    return bool(folder.read_run_inputs().get("bos", OLD_RUN_DEFAULTS["bos"]))


def find_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[RunChange]:
    """List the changed inputs: the settings first, then everything else."""
    settings = [
        RunChange(name, then["settings"].get(name, OLD_SETTINGS.get(name)), value, is_setting=True)
        for name, value in now["settings"].items()
    ]
    others = [
        RunChange(name, then.get(name, OLD_RUN_DEFAULTS.get(name)), value)
        for name, value in now.items()
        if name != "settings" and (name in then or name not in LATER_INPUTS)
    ]
    return [change for change in settings + others if change.then != change.now]


def check_changes(changes: Sequence[RunChange], *, accepted: bool, fixed: Collection[str]) -> None:
    """Refuse changes that were not accepted, and any change of a `fixed` setting.

    Raises:
        UserError: with all refused changes, and what to do.
    """
    if refused := [change for change in changes if change.is_setting and change.name in fixed]:
        raise UserError(
            *map(str, refused),
            "these never change within a run; leave them out, or start a new run",
        )
    if changes and not accepted:
        raise UserError(
            *map(str, changes),
            "undo these changes, start a new run, or continue with them by adding `accept_changes`",
        )


def record_changes(
    folder: RunFolder, changes: Sequence[RunChange], *, settings_toml: str, run_inputs: dict[str, Any]
) -> None:
    """Record changed inputs, with the time, and warn that the run's result changes."""
    for change in changes:
        warn(f"{change}; the run continues with the new value, and its result will differ")
    when = datetime.now().isoformat(timespec="seconds")
    earlier = folder.read_run_inputs().get("changes", [])
    recorded = [change.to_json(when) for change in changes]
    folder.update_run_inputs(settings_toml, run_inputs | {"changes": [*earlier, *recorded]})
