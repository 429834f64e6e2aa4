"""The options of `loratune quickstart`: their types, defaults, help and validation."""

from pathlib import Path

from pydantic import Field

from loratune.config.shared import PROMPTS_HELP, BaseModelConfig, DryRunConfig, Duration, MachineConfig


class QuickstartConfig(BaseModelConfig, MachineConfig, DryRunConfig):
    """Do the main job once: prepare, train, evaluate, compare."""

    out: Path = Field(default=Path("quickstart"), description="folder for everything it writes")
    budget: Duration = Field(default="5m", validate_default=True, description="training time, such as 5m")
    prompts: Path | None = Field(default=None, description=PROMPTS_HELP)
