"""TrainPlan: everything that a training run does, with nothing left open.

A configuration may leave much open. `training.setup` decides the rest from the data, the model and the
machine, and makes a plan in which nothing is optional.
"""

from dataclasses import dataclass

from loratune.training.schedule import StopRule


@dataclass(frozen=True)
class AdapterSettings:
    """The form of a LoRA adapter and its first weights."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class StepSettings:
    """What one optimiser step computes: everything that the speed and memory of a run depend on."""

    adapter: AdapterSettings
    batch_tokens: int  # tokens of an optimiser step, prompts included
    low_memory: bool  # gradient checkpointing
    seed: int  # of the data order


@dataclass(frozen=True)
class TrainPlan:
    """The plan of a training run."""

    step: StepSettings
    stop_rule: StopRule
    learning_rate: float  # the peak
    schedule: str  # cosine, linear or constant
    warmup: float  # share of the run
    weight_decay: float
    clip: float  # largest gradient norm
    patience: int  # validations without improvement before an early stop; 0: never
    micro_tokens: int  # tokens of a micro-batch
    max_tokens: int  # tokens of an example
    precision: str  # fp32 or bf16
    device: str  # cpu or cuda
    validations: int
    val_rows: int
