"""The run that a configuration resumes: its folder, its recorded settings, and what has changed since."""

from loratune.config.base import read_toml
from loratune.config.shared import RUNS_FOLDER
from loratune.config.train import TrainConfig
from loratune.data.template import PromptTemplate
from loratune.errors import UserError
from loratune.models.resolve import ResolvedModel
from loratune.models.tokenizer import Tokenizer
from loratune.system.hardware import CPU_REMEDY
from loratune.training.resume import check_changes, collect_run_inputs, find_changes, has_bos_prompts
from loratune.training.run_folder import RunFolder, find_newest_run

# Settings whose default leaves the choice to the machine or the moment; it is made once in a run.
RESOLVED_ONCE = ("model", "run", "precision", "micro_tokens", "threads", "device")


def get_run_folder(config: TrainConfig) -> RunFolder:
    assert config.run is not None, "the run has its name by now"
    return RunFolder(RUNS_FOLDER / config.run)


def resume_config(given: TrainConfig) -> TrainConfig:
    """Return the recorded configuration of the run to resume, overridden by the options given now."""
    folder = RUNS_FOLDER / given.run if given.run else find_newest_run(RUNS_FOLDER)
    path = folder / "settings.toml"
    if not path.is_file():
        problem = f"there is no run {folder}; leave `resume` out to start it"
        raise UserError(problem, setting="resume")
    recorded, defaults = TrainConfig.raise_micro_tokens(read_toml(path)), TrainConfig()
    original = TrainConfig.validate_all(recorded, where=str(path))
    given_names = {
        name
        for name in given.model_fields_set
        if name not in RESOLVED_ONCE or getattr(given, name) != getattr(defaults, name)
    }
    if original.budget and given.val_rows >= original.val_rows:
        given_names.discard("val_rows")  # a short budget may have made them fewer when the run began
    values = TrainConfig.merge_values(recorded, given.model_dump(include=given_names))
    return TrainConfig.validate_all(values | {"run": folder.name}, where=str(path))


def format_resume_command(run: str | None) -> str:
    return f"loratune train --run {run} --resume"


def choose_device_remedy(config: TrainConfig) -> str:
    if not config.resume:
        return CPU_REMEDY
    return f"to go on without it: {format_resume_command(config.run)} --device cpu --accept-changes"


def resolve_bos(config: TrainConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer; for a resumed run whose prompts have no BOS, return it without BOS."""
    if config.resume and not has_bos_prompts(get_run_folder(config)):
        return tokenizer.without_bos()
    return tokenizer


def read_template_date(config: TrainConfig) -> str:
    """Return the date that a resumed run's chat template writes; "" for one without it, or a new run."""
    return get_run_folder(config).read_run_inputs().get("template_date", "") if config.resume else ""


def refuse_changes(
    config: TrainConfig,
    resolved: ResolvedModel,
    template: PromptTemplate,
    *,
    tokenizer: Tokenizer,
    hashes: dict[str, str],
    device: str,
) -> None:
    """Raise UserError for what has changed since the run began and was not accepted."""
    now = collect_run_inputs(
        resolved,
        template,
        data=hashes,
        settings=dump_recorded_settings(config),
        device=device,
        bos=tokenizer.bos,
    )
    changes = find_changes(read_earlier_inputs(config), now)
    check_changes(changes, accepted=config.accept_changes, fixed=TrainConfig.FIXED)


def dump_recorded_settings(config: TrainConfig) -> dict:
    """Return the settings that a run's adapter depends on, as JSON has them."""
    return config.without_start_options().model_dump(mode="json", exclude={"run", "out"})


def read_earlier_inputs(config: TrainConfig) -> dict:
    """Return the inputs of the run as they were when it began, or after the last accepted change."""
    earlier = get_run_folder(config).read_run_inputs()
    return earlier | {"settings": TrainConfig.raise_micro_tokens(earlier["settings"])}
