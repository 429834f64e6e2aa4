"""The options of `loratune doctor`: their types, defaults, help and validation."""

from loratune.config.shared import MachineConfig


class DoctorConfig(MachineConfig):
    """Check whether this machine can train, and what will be slow and why."""
