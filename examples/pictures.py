"""The style of the examples' pictures, and the folder for them."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

OUTPUT = Path(__file__).parent / "output"
OURS, OTHER, QUIET = "#d94801", "#3182bd", "#444444"


def set_style() -> None:
    """Set a style without windows, with few lines and a grey grid in the background."""
    plt.switch_backend("agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 150})


def draw_pair(axes, ours, others, title: str) -> None:
    """Draw two curves that must agree: a wide one and a thin one above it."""
    steps = range(1, len(ours) + 1)
    axes.plot(steps, ours, color=OTHER, linewidth=5, alpha=0.5, label="jaxce, no logits stored")
    axes.plot(steps, others, color=OURS, linewidth=1.2, label="all logits")
    axes.set(title=title, xlabel="step")
    axes.legend()


def save(figure: Figure, name: str) -> Path:
    """Save the figure in the folder `output`, which git ignores."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUTPUT / f"{name}.png")
    return OUTPUT / f"{name}.png"
