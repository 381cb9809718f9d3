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


def save(figure: Figure, name: str) -> Path:
    """Save the figure in the folder `output`, which git ignores."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUTPUT / f"{name}.png")
    return OUTPUT / f"{name}.png"
