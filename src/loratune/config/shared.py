"""Settings that several commands have."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from loratune.config.base import Config

DURATION_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_PART = r"(\d+(?:\.\d+)?)([smh])"  # of a duration
MAX_DURATION_LENGTH = 40  # characters


def parse_duration(value: Any) -> Any:
    """Convert `90s`, `10m`, `1.5h` or `1h30m` to seconds; a number without a unit is seconds."""
    if not isinstance(value, str):
        return value
    plain = value.replace(" ", "")
    if len(plain) <= MAX_DURATION_LENGTH and re.fullmatch(rf"({DURATION_PART})+", plain, re.ASCII):
        return sum(
            float(number) * DURATION_UNITS[unit]
            for number, unit in re.findall(DURATION_PART, plain, re.ASCII)
        )
    try:
        return float(value)
    except ValueError:
        raise ValueError("not a duration; write it like 90s, 10m or 1h30m") from None


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=365 * 86400)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
RepetitionPenalty = Annotated[float, Field(ge=1, le=10)]
DEFAULT_ADAPTER = Path("model/gpt2_lora_finetuned")
RUNS_FOLDER = Path("runs")
TEMPLATE_HELP = (
    "prompt template: chat (the base model's own chat template), instruction, chatml, plain, a .toml or "
    ".jinja file with your own, or auto (chat where the base model has one, else instruction)"
)
PROMPTS_HELP = "JSON file with a list of prompts; default: test.json, or loratune's own where there is none"


class BaseModelConfig(Config):
    model: str = Field(
        default="auto",
        description="base model: a short name (gpt2, smollm2-135m), a Hugging Face name, a folder, a .gguf "
        "file, or auto (GPT-2 if it is cached or the hub answers, else SmolLM2-135M-Instruct)",
    )


class MachineConfig(Config):
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads; 0 means one per physical core")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where to compute; auto uses a GPU if there is one"
    )


class RowConfig(Config):
    max_tokens: int = Field(
        default=1024,
        ge=64,
        description="longest example, in tokens; longer ones are truncated: the input first, or a "
        "conversation's oldest turns",
    )
    template: str = Field(default="auto", description=TEMPLATE_HELP)
    learn: Literal["all", "last"] = Field(
        default="all", description="which answers of a conversation are learned"
    )


class DryRunConfig(Config):
    dry_run: bool = Field(default=False, description="check everything, print what would be done, and stop")


class BaseOverrideConfig(MachineConfig):
    model: str | None = Field(
        default=None, description="base model; default: the one the adapter was trained on"
    )
    template: str | None = Field(
        default=None, description="prompt template to use instead of the adapter's own"
    )


class AdapterConfig(BaseOverrideConfig):
    adapter: Path = Field(default=DEFAULT_ADAPTER, description="folder with the adapter")


class SamplingConfig(Config):
    max_new_tokens: int = Field(default=128, ge=1, description="longest answer, in tokens")
    temperature: float = Field(
        default=0.0, ge=0, description="0 always takes the most likely token; higher values are more varied"
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="sample from the smallest set of most likely tokens with this total probability",
    )
    top_k: int = Field(default=0, ge=0, description="sample from this many most likely tokens; 0 means all")
    seed: Seed = Field(
        default=0, description="random seed of sampling, the same for both models, and of the choice of rows"
    )


class DecodingConfig(SamplingConfig):
    repetition_penalty: RepetitionPenalty = Field(
        default=1.0,
        description="make tokens that the answer already contains less likely, unless decoding is "
        "constrained; 1 means off",
    )
    batch_size: int = Field(
        default=64,
        ge=1,
        description="most answers generated in parallel, fewer where memory is short; answers do not depend "
        "on it",
    )
