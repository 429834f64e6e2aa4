"""What `loratune doctor` may be asked."""

from loratune.config.shared import Machine


class DoctorSettings(Machine):
    """Check whether this machine can train, and what will be slow and why."""
