"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path

from loratune.files import replacing


def plot_losses(rows: Sequence[dict], path: Path) -> None:
    """The training loss of each step (thin), its moving average, and the validation loss, over the tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    training = [row for row in rows if "loss" in row]
    tokens_at = {row["step"]: row["tokens"] for row in training} | {0: 0}
    validation = [(tokens_at[row["step"]], row["val_nll"]) for row in rows if "val_nll" in row]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    tokens, losses = [row["tokens"] for row in training], [row["loss"] for row in training]
    axes.plot(tokens, losses, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(tokens, moving_average(losses), color="C0", label="training (moving average)")
    axes.plot(*zip(*validation, strict=True), "o-", color="C1", markersize=4, label="validation")
    axes.set(xlabel="tokens trained on", ylabel="loss of a response token (nats)")
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150, format="png")
    pyplot.close(figure)


def moving_average(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential, corrected for its start (Kingma & Ba 2015, section 3; arXiv:1412.6980)."""
    averages, sum_, weight = [], 0.0, 0.0
    for value in values:
        sum_, weight = keep * sum_ + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(sum_ / weight)
    return averages
