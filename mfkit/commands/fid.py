"""``mfkit fid``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mfkit.commands import options


def register(app: typer.Typer) -> None:
    @options.command(
        app, "fid",
        examples="`mfkit fid samples/ --reference train/`, "
        "`mfkit fid samples.npz --reference VIRTUAL_imagenet256_labeled.npz --resize legacy-tf`, "
        "`mfkit fid samples/ --reference train/ --features vit_large_patch14_dinov2.lvd142m --precision-recall`, "
        "`mfkit fid samples.npz --reference digits:train --features rae.safetensors --diversity`",
    )  # fmt: skip
    def fid(
        samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="Folder, shards, .npz, or `digits`.")],
        reference: Annotated[
            str,
            typer.Option(help="Real images, likewise, or an .npz of statistics (mu, sigma).", metavar="IMAGES|NPZ"),
        ],
        features: Annotated[
            str,
            typer.Option(help="`inception`, an RAE file, or a timm model (DINOv2's for FD-DINOv2).", metavar="F"),
        ] = "inception",
        resize: Annotated[
            Literal["clean", "legacy-tf"],
            typer.Option(help="How images come to Inception's size: antialiased, or as ADM's evaluation does."),
        ] = "clean",
        inception: Annotated[
            Path | None,
            typer.Option(help="Local copy of Inception's weights, inception-2015-12-05.pt.", metavar="FILE"),
        ] = None,
        features_weights: Annotated[
            str | None,
            typer.Option(help="Local copy of the weights of a timm model, or hf://owner/repo/path.", metavar="FILE"),
        ] = None,
        kid: Annotated[bool, typer.Option("--kid", help="KID too, over 100 subsets of 1,000.")] = False,
        score: Annotated[bool, typer.Option("--inception-score", help="Inception Score too, over 10 splits.")] = False,
        manifold: Annotated[
            bool, typer.Option("--precision-recall", help="Precision and recall too, by 3 nearest neighbours.")
        ] = False,
        diversity: Annotated[
            bool,
            typer.Option("--diversity", help="Compare the pixels too: variance within classes, nearest real images."),
        ] = False,
        save_stats: Annotated[
            Path | None,
            typer.Option(help="Keep the reference's statistics, to be given as --reference.", metavar="FILE.npz"),
        ] = None,
        count: Annotated[
            int | None, typer.Option("-n", "--count", help="Use N samples only, spread evenly.", min=2, metavar="N")
        ] = None,
        batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1, metavar="N")] = 250,
        workers: options.Workers = 4,
        overwrite: options.Overwrite = False,
    ) -> str:
        """Samples and real images → Fréchet distance, with its conditions, as one JSON object."""
        import json

        from mfkit.evaluation.evaluate import Evaluation, evaluate

        wanted = Evaluation(
            features=features, resize=resize, inception=inception, features_weights=features_weights, count=count,
            diversity=diversity, kernel=kid, score=score, manifold=manifold, save_stats=save_stats,
            batch_size=batch_size, workers=workers,
        )  # fmt: skip
        return json.dumps(evaluate(samples, reference, wanted, overwrite=overwrite), indent=2)
