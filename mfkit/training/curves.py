"""The curves of training logs, as a PNG file."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from mfkit.artifacts.atomic import atomic_write


def write_curves(path: Path, logs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """See :func:`curves_png`."""
    with atomic_write(path) as partial:
        partial.write_bytes(curves_png(logs))


def curves_png(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """What the logs tell over the steps, a line a run: loss, mean squared error, gradient norm and what else there is.

    :param logs: lines by run, at least one each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "loss": "loss",
        "mse": "mean squared error, unweighted",
        "grad_norm": "gradient norm before clipping",
        "perceptual": "perceptual distance",
        "adversarial": "what the discriminator tells the decoder",
        "discriminator": "the discriminator's hinge loss",
        "fid": "Fréchet distance of the average's samples",
    }
    told = sorted({name for lines in logs.values() for line in lines for name in line})
    averages = {name: f"the same, --ema {name.removeprefix('fid.')}" for name in told if name.startswith("fid.")}
    panels = {name: title for name, title in {**panels, **averages}.items() if name in told}
    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        values = []
        for run, lines in logs.items():
            with_it = [line for line in lines if name in line]
            axes.plot([line["step"] for line in with_it], [line[name] for line in with_it], label=run)
            values += [line[name] for line in with_it]
        axes.set(title=title, xlabel="step", yscale="log" if min(values) > 0 else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    held = BytesIO()
    figure.savefig(held, format="png", dpi=100)
    return held.getvalue()
