"""What `loratune doctor` may be asked."""

from loratune.config.shared import MachineConfig


class DoctorConfig(MachineConfig):
    """Check whether this machine can train, and what will be slow and why."""
