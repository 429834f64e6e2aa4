"""What happens in a training run, event by event; the command line shows them, and Python callers may."""

from dataclasses import dataclass

from loratune.training.checkpoint import TrainingState
from loratune.training.step import StepResult


@dataclass(frozen=True)
class Ready:
    """The run begins, or goes on from a checkpoint. The base model is measured next, if it was not yet."""

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
    """The run can go on from here."""

    state: TrainingState


@dataclass(frozen=True)
class Warned:
    """Something that the user should know, while the run goes on."""

    message: str


@dataclass(frozen=True)
class Finished:
    """The last event. A run that was stopped is not complete: it can be resumed."""

    state: TrainingState
    is_complete: bool


Event = Ready | StepDone | Validated | CheckpointSaved | Warned | Finished
