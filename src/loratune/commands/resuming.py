"""Going on with a run: its settings, and whether all that it is made from is still what it was when the run
began.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version

from loratune.config.base import format_flag, read_toml
from loratune.config.shared import RUNS_FOLDER
from loratune.config.train import TrainConfig
from loratune.data.template import Template
from loratune.errors import FileError, UserError
from loratune.models.resolve import ResolvedModel
from loratune.system.console import warn
from loratune.system.hardware import identify_processor
from loratune.training.run_folder import RunFolder, find_newest_run

# That tokens, data order and numbers depend on.
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "loratune",
)
LATER_INPUTS = ("config", "tokenizer")  # facts that runs of the first version do not have
# Settings whose default leaves the choice to the machine or the moment; it is made once in a run.
RESOLVED_ONCE = ("model", "run", "precision", "micro_tokens", "threads", "device")
OLD_RUN_DEFAULTS = {"bos": False}  # what older runs' facts.json does not say, and how it was then


def resume_config(asked: TrainConfig) -> TrainConfig:
    """The settings of the run to go on with, and over them what is asked now."""
    folder = RUNS_FOLDER / asked.run if asked.run else find_newest_run(RUNS_FOLDER)
    path = folder / "settings.toml"
    if not path.is_file():
        raise UserError(f"--resume: there is no run {folder}; leave --resume out to start it")
    kept, defaults = TrainConfig.raise_micro_tokens(read_toml(path)), TrainConfig()
    began = TrainConfig.validate_all(kept, origin=f"{path}: ")
    given = {
        name
        for name in asked.model_fields_set
        if name not in RESOLVED_ONCE or getattr(asked, name) != getattr(defaults, name)
    }
    if began.budget and asked.val_rows >= began.val_rows:
        given.discard("val_rows")  # a short budget may have made them fewer when the run began
    values = TrainConfig.merge_values(kept, asked.model_dump(include=given))
    return TrainConfig.validate_all(values | {"run": folder.name}, origin=f"{path}: ")


@dataclass(frozen=True)
class RunChange:
    """Something that a run is made from and that is not as it was when the run began."""

    name: str
    then: object
    now: object

    def __str__(self) -> str:
        return f"{self.name}: {shorten_value(self.then)} when the run began, {shorten_value(self.now)} now"


def shorten_value(value: object) -> str:
    """A value as a message shows it: of a sha256 its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)


def collect_run_inputs(
    settings: TrainConfig,
    found: ResolvedModel,
    data_info: dict,
    template: Template,
    device: str,
    bos: Sequence[int],
) -> dict:
    """All that a run's adapter depends on, down to the last bit; `made_of` says what the data is, `bos`
    begins each prompt.
    """
    return {
        "base": found.fingerprint,
        "config": found.config,
        "tokenizer": found.tokenizer,
        **{f"{name}.jsonl": content for name, content in data_info["data"].items()},
        "template": hashlib.sha256(json.dumps(template.to_dict()).encode()).hexdigest(),
        **{package: version(package) for package in PACKAGES},
        "processor": identify_processor(device),
        "bos": bool(bos),
        "settings": settings.without_start_options().model_dump(mode="json", exclude={"run", "out"}),
    }


def has_bos_prompts(settings: TrainConfig) -> bool:
    """Whether the prompts of the run to go on with begin with BOS; no run's did before this was written
    down.
    """
    return bool(RunFolder(RUNS_FOLDER / settings.run).read_run_inputs().get("bos", OLD_RUN_DEFAULTS["bos"]))


def check_changes(settings: TrainConfig, now: dict) -> list[RunChange]:
    """What is not as it was when the run began. Raises UserError for what nobody accepted, or what no run can
    bear.
    """
    then = RunFolder(RUNS_FOLDER / settings.run).read_run_inputs()
    before = TrainConfig.raise_micro_tokens(then["settings"])
    of_settings = [
        RunChange(format_flag(name), before.get(name), value) for name, value in now["settings"].items()
    ]
    known = {name: value for name, value in now.items() if name in then or name not in LATER_INPUTS}
    of_facts = [
        RunChange(name, then.get(name, OLD_RUN_DEFAULTS.get(name)), value)
        for name, value in known.items()
        if name != "settings"
    ]
    found = [change for change in of_settings + of_facts if change.then != change.now]
    if fixed := [change for change in found if change.name in map(format_flag, TrainConfig.FIXED)]:
        raise UserError(
            *map(str, fixed),
            "a run keeps these from its beginning to its end; leave them out, or start a new run",
        )
    if found and not settings.accept_changes:
        remedy = "bring back what was, start a new run, or go on with what is now by adding --accept-changes"
        raise UserError(*map(str, found), remedy)
    return found


def open_run(settings: TrainConfig, run_inputs: dict) -> RunFolder:
    """A new run's folder, or the old one's, in which accepted changes are recorded."""
    folder = RunFolder(RUNS_FOLDER / settings.run)
    if not settings.resume:
        folder.create(settings.without_start_options().to_toml(), run_inputs)
    elif found := check_changes(settings, run_inputs):
        for change in found:
            warn(f"{change}; the run goes on with it, and will not end as it would have")
        when = datetime.now().isoformat(timespec="seconds")
        recorded = folder.read_run_inputs().get("changes", []) + [
            {"when": when, **asdict(change)} for change in found
        ]
        folder.update_run_inputs(
            settings.without_start_options().to_toml(), run_inputs | {"changes": recorded}
        )
    return folder


@contextmanager
def resume_hint(run: str):
    """A run that the file system stopped says how it goes on."""
    try:
        yield
    except FileError as error:
        if not (RUNS_FOLDER / run / "settings.toml").is_file():
            raise
        remedy = f"nothing up to the last checkpoint is lost; go on with: {format_resume_command(run)}"
        raise UserError(*error.details, remedy) from error


def format_resume_command(run: str) -> str:
    return f"loratune train --run {run} --resume"
