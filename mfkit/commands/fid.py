"""``mfkit fid``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.evaluation.metrics import ALIASES, METRICS, MetricSettings


@command(
    "Sample and evaluate", MetricSettings,
    examples="""
    mfkit fid samples/ --reference train/
    mfkit fid samples.npz --reference VIRTUAL_imagenet256_labeled.npz \\
        --metrics sfid,is
    mfkit fid samples/ --reference train/ --features inception,dinov2,siglip2
    mfkit fid samples/ --reference digits --features rae.safetensors --diversity
    mfkit fid samples/ --reference train.npz --resample 10 --against before.json
    """,
)  # fmt: skip
def fid(
    samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="Folder, shards, .npz, or `digits`.")],
    reference: Annotated[
        list[str],
        typer.Option(
            help="Real images, likewise, or an .npz of statistics (mu, sigma); repeatable: of each space one.",
            metavar="IMAGES|NPZ",
        ),
    ],
    flags: options.Flags,
    features: Annotated[
        str,
        typer.Option(
            help="Spaces, by commas: inception, dinov2, siglip2, mae, clip, convnext; an RAE's file; a timm model; "
            "pixels, pooled to 8 x 8.",
            metavar="A,B",
        ),
    ] = "inception",
    metrics: Annotated[
        str, typer.Option(help="More figures, by commas: sfid, kid, is, prdc, …, as the switches below.", metavar="A,B")
    ] = "",
    resize: Annotated[
        Literal["auto", "clean", "legacy-tf"],
        typer.Option(
            help="How images are resized before Inception: antialiased, or as by ADM's evaluation; auto is clean, and "
            "legacy-tf against statistics that do not say theirs, as ADM's."
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Take a protocol that no paper uses.")] = False,
    inception: Annotated[
        Path | None,
        typer.Option(
            help="Local copy of Inception's weights: pt_inception-2015-12-05-6726825d.pth, or inception-2015-12-05.pt, "
            "which is a program.",
            metavar="FILE",
        ),
    ] = None,
    features_weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Local copy of the weights of a timm model, or hf://owner/repo/path; NAME=FILE where there are "
            "several; repeatable.",
            metavar="FILE",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            help="Real images that the reference does not hold, or imagenet256 for the published distances: FDr is the "
            "mean of the distances over theirs.",
            metavar="IMAGES",
        ),
    ] = None,
    paired: Annotated[
        str,
        typer.Option(
            help="Compare image by image, as reconstructions: psnr, and with the extra `paired` ssim, lpips.",
            metavar="A,B",
        ),
    ] = "",
    resample: Annotated[
        int | None,
        typer.Option(help="Tell the distance's standard error, over N groups of samples.", min=2, metavar="N"),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="An earlier result: is the difference more than noise?", metavar="FILE.json")
    ] = None,
    save_stats: Annotated[
        Path | None,
        typer.Option(help="Write the reference's statistics, to be passed as --reference.", metavar="FILE.npz"),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="Use N samples only, spread evenly.", min=2, metavar="N")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1, metavar="N")] = 32,
    workers: options.Workers = 4,
    overwrite: options.Overwrite = False,
) -> str:
    """Measure how far samples are from real images.

    Prints the Fréchet distance, the metrics that were asked for, and all conditions, as one JSON object.
    """
    import json
    from contextlib import nullcontext

    from mfkit.artifacts.atomic import exclusive_output
    from mfkit.errors import UsageError
    from mfkit.evaluation.evaluate import Evaluation, evaluate
    from mfkit.evaluation.features import requested
    from mfkit.evaluation.paired import MEASURES

    pairs = [name.strip() for name in paired.split(",") if name.strip()]
    if unknown := [name for name in pairs if name not in MEASURES]:
        raise UsageError(f"--paired {unknown[0]}: known are {', '.join(MEASURES)}")
    words = (name.strip() for name in metrics.split(","))
    named = [ALIASES.get(name, name) for name in words if name not in ("", "fid")]
    if unknown := [name for name in named if name not in METRICS]:
        raise UsageError(f"--metrics {unknown[0]}: known are fid, {', '.join([*METRICS, *ALIASES])}")
    asked = Evaluation(
        features=requested(features, features_weights or (), resize=resize, inception=inception),
        metrics=[name for name in METRICS if flags.get(name.replace("-", "_")) or name in named],
        count=count, groups=resample or 1, validation=validation, save_stats=save_stats, against=against,
        paired={name: MEASURES[name]() for name in pairs}, force=force, batch_size=batch_size, workers=workers,
    )  # fmt: skip
    read = [Path(location) for location in (samples, *reference)]
    with exclusive_output(save_stats, overwrite=overwrite, suffix=".npz", inputs=read) if save_stats else nullcontext():
        return json.dumps(evaluate(samples, reference, asked), indent=2)
