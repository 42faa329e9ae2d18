"""``mfkit fid``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mfkit.commands import options
from mfkit.evaluation.metrics import METRICS, MetricSettings


@options.command(
    "Sample and evaluate", MetricSettings,
    examples="""
    mfkit fid samples/ --reference train/
    mfkit fid samples.npz --reference VIRTUAL_imagenet256_labeled.npz \\
        --resize legacy-tf
    mfkit fid samples/ --reference train/ \\
        --features vit_large_patch14_dinov2.lvd142m
    mfkit fid samples/ --reference digits --features rae.safetensors --diversity
    """,
)  # fmt: skip
def fid(
    samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="Folder, shards, .npz, or `digits`.")],
    reference: Annotated[
        str,
        typer.Option(help="Real images, likewise, or an .npz of statistics (mu, sigma).", metavar="IMAGES|NPZ"),
    ],
    flags: options.Flags,
    features: Annotated[
        str,
        typer.Option(
            help="inception, an RAE's file, a timm model (DINOv2's for FD-DINOv2), or pixels, pooled to 8 x 8.",
            metavar="F",
        ),
    ] = "inception",
    resize: Annotated[
        Literal["clean", "legacy-tf"],
        typer.Option(help="How images are resized before Inception: antialiased, or as by ADM's evaluation."),
    ] = "clean",
    inception: Annotated[
        Path | None,
        typer.Option(help="Local copy of Inception's weights, inception-2015-12-05.pt.", metavar="FILE"),
    ] = None,
    features_weights: Annotated[
        str | None,
        typer.Option(help="Local copy of the weights of a timm model, or hf://owner/repo/path.", metavar="FILE"),
    ] = None,
    save_stats: Annotated[
        Path | None,
        typer.Option(help="Write the reference's statistics, to be passed as --reference.", metavar="FILE.npz"),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="Use N samples only, spread evenly.", min=2, metavar="N")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1, metavar="N")] = 250,
    workers: options.Workers = 4,
    overwrite: options.Overwrite = False,
) -> str:
    """Measure how far samples are from real images.

    Prints the Fréchet distance, the metrics that were asked for, and all conditions, as one JSON object.
    """
    import json
    from contextlib import nullcontext

    from mfkit.artifacts.atomic import exclusive_output
    from mfkit.evaluation.evaluate import evaluate
    from mfkit.evaluation.features import FeatureRequest

    request = FeatureRequest(features=features, resize=resize, inception=inception, features_weights=features_weights)
    metrics = [name for name in METRICS if flags.get(name.replace("-", "_"))]
    with exclusive_output(save_stats, overwrite=overwrite, suffix=".npz") if save_stats else nullcontext():
        found = evaluate(
            samples, reference, request, metrics, count=count, save_stats=save_stats, batch_size=batch_size,
            workers=workers,
        )  # fmt: skip
    return json.dumps(found, indent=2)
