"""Plot the losses of a run, as loss.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loratune.system.atomic import replace_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 500  # of a curve


def plot_losses(rows: Sequence[dict], path: Path) -> None:
    """Plot the training loss (thin), its moving average and the validation loss over the tokens seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    draw_losses(axes, rows, "C0", "C1")
    axes.grid(alpha=0.3)
    with replace_atomically(path) as beside:
        figure.savefig(beside, dpi=150, format="png")


def draw_losses(axes: "Axes", rows: Sequence[dict], training_colour: str, validation_colour: str) -> None:
    from matplotlib.ticker import EngFormatter

    training = [row for row in rows if "loss" in row and "tokens" in row]
    tokens_at = {row["step"]: row["tokens"] for row in training} | {0: 0}
    validation = [
        (tokens_at[row["step"]], row["val_nll"])
        for row in rows
        if "val_nll" in row and row["step"] in tokens_at
    ]
    tokens, losses = [row["tokens"] for row in training], [row["loss"] for row in training]
    averages = moving_average(losses)
    every = slice(None, None, 1 + len(training) // MAX_POINTS)
    axes.plot(tokens[every], losses[every], color=training_colour, alpha=0.25, linewidth=0.8)
    axes.plot(tokens[every], averages[every], color=training_colour, label="training (moving average)")
    if validation:
        axes.plot(
            *zip(*validation, strict=True), "o-", color=validation_colour, markersize=4, label="validation"
        )
    axes.set(xlabel="tokens trained on", ylabel="loss of a response token (nats)")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend(frameon=False)


def moving_average(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Return exponential moving averages, corrected for their start.

    Kingma & Ba 2015, section 3; arXiv:1412.6980.
    """
    averages, sum_, weight = [], 0.0, 0.0
    for value in values:
        sum_, weight = keep * sum_ + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(sum_ / weight)
    return averages
