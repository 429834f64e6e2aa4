"""Draw charts for the report, as SVG text."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from loratune.evaluation.result import ScoreChange
from loratune.report.loss_plot import draw_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins, replaced in the SVG by the page's own colours, which differ by day, by night and on paper.
COLOURS = {
    name: f"#0b0b{number:02x}"
    for number, name in enumerate(("ink", "soft", "line", "better", "worse", "tied", "base"), 1)
}
# Inches of 72 points: about a column of the page, so that letters keep their size on a phone.
CHART_WIDTH = 4.1
MAX_LABEL_LENGTH = 24
CHART_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.color": COLOURS["line"],
    "ytick.labelcolor": COLOURS["soft"],
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
}


def draw_loss_chart(rows: Sequence[dict]) -> str:
    """Draw the curves of `plot_losses`."""

    def draw(axes: "Axes") -> None:
        draw_losses(axes, rows, COLOURS["soft"], COLOURS["better"])
        axes.grid(axis="y")

    return render_chart(draw, 2.9, "loss")


def outer_fences(values: Sequence[float]) -> tuple[float, float]:
    """Return where the bulk of the values ends: three interquartile ranges beyond the quartiles.

    Tukey 1977, "Exploratory Data Analysis", section 2D.
    """
    import numpy as np

    low, high = np.quantile(values, (0.25, 0.75))
    reach = 3 * (high - low) or math.inf  # where half of them are alike, any other would lie beyond
    return low - reach, high + reach


def draw_changes_chart(changes: Sequence[float], tie: float, ends: tuple[float, float]) -> str:
    """Draw a histogram of the rows' changes in nats a token; colours say improved, tied or regressed.

    Rows beyond `ends` are in the outermost bars, so that a few far ones do not squeeze all others into one.
    """
    import numpy as np

    values = np.asarray(changes, dtype=float)
    tied = abs(values) <= tie
    # Rounded to single precision: what differs there is far enough apart for all the bins between.
    values = values.clip(*ends).astype(np.float32).astype(float)
    groups = [values[~tied & (values < 0)], values[tied], values[~tied & (values > 0)]]
    bins = np.histogram_bin_edges(values, bins=min(40, max(8, len(values) // 4))).tolist()

    def draw(axes: "Axes") -> None:
        axes.hist(
            groups,
            bins=bins,
            stacked=True,
            color=[COLOURS["better"], COLOURS["tied"], COLOURS["worse"]],
            rwidth=0.88,
        )
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
        axes.set(xlabel="change, nats a token (left is better)", ylabel="rows")
        axes.locator_params("x", nbins=6)  # more would touch each other
        axes.locator_params("y", integer=True)
        axes.grid(axis="y")

    return render_chart(draw, 2.9, "changes")


def draw_parts_chart(changes: Mapping[str, ScoreChange]) -> str:
    """Draw the change of the loss and its 95 % interval for each part of the rows."""

    def draw(axes: "Axes") -> None:
        for place, part in enumerate(changes.values()):
            ink = choose_colour(part)
            axes.plot(part.interval, (place, place), color=ink, linewidth=2.5, solid_capstyle="round")
            axes.plot(part.mean, place, "o", color=ink, markersize=6)
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
        # parse_math: a dollar sign in a name is a dollar sign
        axes.set_yticks(range(len(changes)), [shorten_label(name) for name in changes], parse_math=False)
        axes.set_ylim(len(changes) - 0.5, -0.5)
        axes.set(xlabel="change, nats a token (left is better)")
        axes.grid(axis="x")

    return render_chart(draw, 0.7 + 0.24 * len(changes), "parts")


def choose_colour(change: ScoreChange) -> str:
    """Return the colour of a change of the loss: grey where its interval holds 0."""
    low, high = change.interval
    if low <= 0 <= high:
        return COLOURS["tied"]
    return COLOURS["better" if high < 0 else "worse"]


def shorten_label(name: str) -> str:
    """Return a name from a file, shortened and without characters that XML forbids."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return name if len(name) <= MAX_LABEL_LENGTH else name[: MAX_LABEL_LENGTH - 1] + "…"


def render_chart(draw: Callable[["Axes"], None], height: float, name: str) -> str:
    """Return SVG text for a page.

    Letters are text, colours come from the page's style, and no id is another chart's, too.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = CHART_STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's font has it, or shows a box
        figure = Figure(figsize=(CHART_WIDTH, height), layout="constrained")
        draw(figure.subplots())
        return clean_svg(render_svg(figure))


def render_svg(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def clean_svg(svg: bytes) -> str:
    """Return the drawing alone, without the file's head, size, font names and unused ids."""
    root = ElementTree.fromstring(svg)
    referred = set(re.findall(rb"#(\w+)", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.get("id", "").encode() not in referred:
            element.attrib.pop("id", None)
        if style := element.get("style"):
            element.set("style", use_page_colours(style))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("aria-hidden", "true")  # the caption says it in words
    return ElementTree.tostring(root, encoding="unicode")


def use_page_colours(style: str) -> str:
    for name, ink in COLOURS.items():
        style = style.replace(ink, f"var(--{name})")
    return re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", style)
