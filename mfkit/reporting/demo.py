"""A page that draws what one asks for while one looks: classes, seeds, steps, from one noise to another."""

import os
import socket
from collections.abc import Callable, Sequence
from math import pi
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from mfkit.data.codecs import to_uint8
from mfkit.errors import InputError, UsageError
from mfkit.inference.painter import Painter

if TYPE_CHECKING:
    from gradio import Blocks

MOST_IMAGES = 32
"""That a page draws at once."""
_BETWEEN = 10
"""Images from one noise to another."""
_SHOWN_SIDE = 192
"""Pixels; smaller images are shown enlarged by a whole number."""
_STEPS = {"student": (1, 2, 4), "teacher": (10, 25, 50)}
_FONTS = ["system-ui", "sans-serif"]
"""Of the machine: the page fetches nothing from others."""

Drawn = list[tuple[Image.Image, str]]
"""Pictures, and what is written below each."""


def show(model: Painter, teacher: Painter | None, *, host: str, port: int | None, ready: Callable[[str], None]) -> None:
    """Serves the page until it is interrupted.

    :param port: None is the first free one from 7860 on. :param ready: is told the address.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by gradio when it is imported
    try:
        import gradio
    except ImportError as error:
        raise UsageError("demo needs gradio: pip install 'mfkit[demo]'") from error
    try:  # gradio would try a hundred ports, and show all its attempts
        with socket.create_server((host, port or 0)):
            pass
    except OSError as error:
        at = f"--host {host}" + (f" --port {port}" if port else "")
        raise InputError(f"{at}: {error.strerror or error}") from error
    for painter in (model, teacher):
        if painter:  # the first evaluation takes longer than any other
            painter.draw(painter.noise(0, 1), torch.zeros(1, dtype=torch.long), 1)
    page = build(model, teacher)
    theme = gradio.themes.Default(font=_FONTS, font_mono=["monospace"])
    _, address, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, theme=theme, show_error=True
    )
    ready(address)
    page.block_thread()


def build(model: Painter, teacher: Painter | None) -> "Blocks":
    """The page, not yet served."""
    import gradio

    names = model.file.description.class_names
    classes = [(name, label) for label, name in enumerate(names)]
    steps = _STEPS[model.file.kind]

    def number(label: str, value: int) -> gradio.Number:
        return gradio.Number(value, label=label, precision=0, minimum=0)

    def chosen(label: str = "Classes, in turn") -> gradio.Dropdown:
        return gradio.Dropdown(classes, value=list(range(min(len(names), 10))), multiselect=True, label=label)

    def live(function: Callable[..., Drawn], inputs: list[Any], columns: int) -> None:
        shown = gradio.Gallery(
            label="Pictures", show_label=False, columns=columns, object_fit="contain", height="auto", format="png"
        )  # fmt: skip

        def drawn(*values: Any) -> Drawn:
            return [] if None in values else function(*values)  # a field was emptied

        # One at a time, so that none waits for another while its time is taken.
        gradio.on(
            [page.load, *(one.change for one in inputs)], drawn, inputs, shown, api_name=function.__name__,
            trigger_mode="always_last", concurrency_id="draw", concurrency_limit=1,
        )  # fmt: skip

    with gradio.Blocks(title="mfkit demo", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gradio.Markdown(f"# {model.file.path.name}")
        with gradio.Tab("Draw"):

            def draw(labels: Sequence[int], seed: int, count: int, nfe: int) -> Drawn:
                turn = [labels[place % len(labels)] for place in range(int(count))] if labels else []
                return _one_by_one(model, model.noise(int(seed), len(turn)), turn, nfe)

            labels = chosen()
            with gradio.Row():
                seed = number("Seed", 0)
                count = gradio.Slider(1, MOST_IMAGES, value=10, step=1, label="Images")
                nfe = gradio.Radio(list(steps), value=steps[0], label="Network evaluations")
            live(draw, [labels, seed, count, nfe], 5)
        with gradio.Tab("From one noise to another"):

            def between(label: int, seed: int, other: int) -> Drawn:
                ends = model.noise(int(seed), 1), model.noise(int(other), 1)
                return _one_by_one(model, between_noises(*ends, _BETWEEN), [label] * _BETWEEN, steps[0])

            with gradio.Row():
                given = [gradio.Dropdown(classes, value=0, label="Class"), number("Seed", 0), number("Other seed", 1)]
            live(between, given, 5)
        if teacher:
            with gradio.Tab("Beside its teacher"):

                def beside(labels: Sequence[int], seed: int) -> Drawn:
                    noise = model.noise(int(seed), len(labels))
                    both = [_one_by_one(by, noise, labels, None) for by in (model, teacher)]
                    return [
                        (picture, f"{by.file.kind}: {caption}")
                        for pair in zip(*both, strict=True)
                        for by, (picture, caption) in zip((model, teacher), pair, strict=True)
                    ]

                live(beside, [chosen("Classes"), number("Seed", 0)], 4)
    return page


def between_noises(first: Tensor, last: Tensor, count: int) -> Tensor:
    """(count, C, H, W) from ``first`` to ``last``, (1, C, H, W) each, along an ellipse.

    cos(a) e + sin(a) e' is N(0, 1) for every a where e and e' are; of a straight line it is not.
    """
    angle = torch.linspace(0, pi / 2, count, device=first.device).view(-1, 1, 1, 1)
    return angle.cos() * first + angle.sin() * last


def _one_by_one(painter: Painter, noise: Tensor, labels: Sequence[int], nfe: int | None) -> Drawn:
    """Each for itself, so that its time is that of one picture."""
    names, drawn = painter.file.description.class_names, []
    for place, label in enumerate(labels):
        begin = perf_counter()
        image = painter.draw(noise[place : place + 1], torch.tensor([label]), nfe)[0].cpu()
        milliseconds = 1e3 * (perf_counter() - begin)
        drawn.append((_shown(image), f"{names[label]}, {milliseconds:.3g} ms"))
    return drawn


def _shown(image: Tensor) -> Image.Image:
    picture = Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy())
    times = max(1, _SHOWN_SIDE // picture.width)
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
