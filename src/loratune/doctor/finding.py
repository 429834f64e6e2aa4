"""Finding: one result of `loratune doctor`."""

from dataclasses import dataclass

LEVELS = ("ok", "warning", "problem")  # a problem makes training impossible


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    about: str
    found: str
    level: str = "ok"
    remedy: str = ""  # what to do, with settings in backticks by their Python names; "" if nothing


def format_bytes(size: float) -> str:
    """Format bytes as `16 MB`, `7.6 GB` or `252 GB`."""
    if size < 0.1e9:
        return f"{size / 1e6:.0f} MB" if size >= 1e6 else "less than 1 MB"
    return f"{size / 1e9:.0f} GB" if size >= 10e9 else f"{size / 1e9:.1f} GB"
