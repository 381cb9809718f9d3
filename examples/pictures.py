"""How the pictures of the examples look, and where they go."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

OUTPUT = Path(__file__).parent / "output"
OURS, OTHER, QUIET = "#d94801", "#3182bd", "#444444"


def set_style() -> None:
    """No window, few lines, grey grids behind."""
    plt.switch_backend("agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 150})


def save(figure: Figure, name: str) -> Path:
    """Into `output`, which git ignores."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUTPUT / f"{name}.png")
    return OUTPUT / f"{name}.png"
