"""Going on with a run: its settings, and whether all that it is made from is still what it was when the run began."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version

from loratune.config.base import flag, read_toml
from loratune.config.shared import RUNS
from loratune.config.train import TrainSettings
from loratune.data.template import Template
from loratune.errors import FileError, UserError
from loratune.models.resolve import FoundBase
from loratune.system.console import warn
from loratune.system.hardware import processor_kind
from loratune.training.checkpoint import RunFolder, newest_run

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "loratune")  # that tokens, data order and numbers depend on
ADDED = ("config", "tokenizer")  # facts that runs of the first version do not have
# Settings whose default leaves the choice to the machine or the moment; it is made once in a run.
DECIDED = ("model", "run", "precision", "micro_tokens", "threads", "device")
UNWRITTEN = {"bos": False}  # what older runs' facts.json does not say, and how it was then


def resumed(asked: TrainSettings) -> TrainSettings:
    """The settings of the run to go on with, and over them what is asked now."""
    folder = RUNS / asked.run if asked.run else newest_run(RUNS)
    path = folder / "settings.toml"
    if not path.is_file():
        raise UserError(f"--resume: there is no run {folder}; leave --resume out to start it")
    kept, defaults = TrainSettings.raise_micro_tokens(read_toml(path)), TrainSettings()
    began = TrainSettings.checked(kept, origin=f"{path}: ")
    given = {name for name in asked.model_fields_set if name not in DECIDED or getattr(asked, name) != getattr(defaults, name)}
    if began.budget and asked.val_rows >= began.val_rows:
        given.discard("val_rows")  # a short budget may have made them fewer when the run began
    values = TrainSettings.over(kept, asked.model_dump(include=given))
    return TrainSettings.checked(values | {"run": folder.name}, origin=f"{path}: ")


@dataclass(frozen=True)
class Change:
    """Something that a run is made from and that is not as it was when the run began."""

    name: str
    then: object
    now: object

    def __str__(self) -> str:
        return f"{self.name}: {short(self.then)} when the run began, {short(self.now)} now"


def short(value: object) -> str:
    """A value as a message shows it: of a sha256 its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)


def made_from(
    settings: TrainSettings, found: FoundBase, made_of: dict, template: Template, device: str, bos: Sequence[int]
) -> dict:
    """All that a run's adapter depends on, down to the last bit; `made_of` says what the data is, `bos` begins each prompt."""
    return {
        "base": found.fingerprint,
        "config": found.config,
        "tokenizer": found.tokenizer,
        **{f"{name}.jsonl": content for name, content in made_of["data"].items()},
        "template": hashlib.sha256(json.dumps(template.to_dict()).encode()).hexdigest(),
        **{package: version(package) for package in PACKAGES},
        "processor": processor_kind(device),
        "bos": bool(bos),
        "settings": settings.kept().model_dump(mode="json", exclude={"run", "out"}),
    }


def began_with_bos(settings: TrainSettings) -> bool:
    """Whether the prompts of the run to go on with begin with BOS; no run's did before this was written down."""
    return bool(RunFolder(RUNS / settings.run).facts().get("bos", UNWRITTEN["bos"]))


def accepted_changes(settings: TrainSettings, now: dict) -> list[Change]:
    """What is not as it was when the run began. Raises UserError for what nobody accepted, or what no run can bear."""
    then = RunFolder(RUNS / settings.run).facts()
    before = TrainSettings.raise_micro_tokens(then["settings"])
    of_settings = [Change(flag(name), before.get(name), value) for name, value in now["settings"].items()]
    known = {name: value for name, value in now.items() if name in then or name not in ADDED}
    of_facts = [Change(name, then.get(name, UNWRITTEN.get(name)), value) for name, value in known.items() if name != "settings"]
    found = [change for change in of_settings + of_facts if change.then != change.now]
    if fixed := [change for change in found if change.name in map(flag, TrainSettings.FIXED)]:
        raise UserError(*map(str, fixed), "a run keeps these from its beginning to its end; leave them out, or start a new run")
    if found and not settings.accept_changes:
        remedy = "bring back what was, start a new run, or go on with what is now by adding --accept-changes"
        raise UserError(*map(str, found), remedy)
    return found


def open_run(settings: TrainSettings, facts: dict) -> RunFolder:
    """A new run's folder, or the old one's, in which accepted changes are recorded."""
    folder = RunFolder(RUNS / settings.run)
    if not settings.resume:
        folder.create(settings.kept().to_toml(), facts)
    elif found := accepted_changes(settings, facts):
        for change in found:
            warn(f"{change}; the run goes on with it, and will not end as it would have")
        when = datetime.now().isoformat(timespec="seconds")
        recorded = folder.facts().get("changes", []) + [{"when": when, **asdict(change)} for change in found]
        folder.change(settings.kept().to_toml(), facts | {"changes": recorded})
    return folder


@contextmanager
def resumable(run: str):
    """A run that the file system stopped says how it goes on."""
    try:
        yield
    except FileError as error:
        if not (RUNS / run / "settings.toml").is_file():
            raise
        remedy = f"nothing up to the last checkpoint is lost; go on with: {resume_command(run)}"
        raise UserError(*error.problems, remedy) from error


def resume_command(run: str) -> str:
    return f"loratune train --run {run} --resume"
