"""Events of a training run: the loop yields them, and the command line or a Python caller shows them."""

from dataclasses import dataclass

from loratune.training.checkpoint import TrainingState
from loratune.training.step import StepResult


@dataclass(frozen=True)
class Ready:
    """The run starts, or continues from a checkpoint. The base model is validated next if it was not yet."""

    state: TrainingState


@dataclass(frozen=True)
class StepDone:
    """An optimiser step was taken and logged."""

    state: TrainingState
    result: StepResult
    learning_rate: float
    progress: float  # of the run, 0 to 1
    seconds_left: float  # estimated


@dataclass(frozen=True)
class Validated:
    """The validation loss was measured and logged."""

    state: TrainingState
    nll: float  # nats a target token


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint was saved, from which the run can be resumed."""

    state: TrainingState


@dataclass(frozen=True)
class Warned:
    """The user should know something; the run goes on."""

    message: str


@dataclass(frozen=True)
class Finished:
    """The last event. A run that was stopped is not complete: it can be resumed."""

    state: TrainingState
    is_complete: bool


Event = Ready | StepDone | Validated | CheckpointSaved | Warned | Finished
