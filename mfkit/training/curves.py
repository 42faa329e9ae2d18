"""The curves of training logs, as a PNG file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mfkit.artifacts.atomic import atomic_write


def write_curves(path: Path, logs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Loss, mean squared error and gradient norm over the steps, a line for each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "loss": "loss",
        "mse": "mean squared error, unweighted",
        "grad_norm": "gradient norm before clipping",
    }
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for run, lines in logs.items():
            axes.plot([line["step"] for line in lines], [line[name] for line in lines], label=run)
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
