"""``mfkit fid``."""

from typing import Annotated

import typer

from mfkit.commands import options


def register(app: typer.Typer) -> None:
    @options.command(
        app, "fid",
        examples="`mfkit fid samples/ --reference train/`, "
        "`mfkit fid samples.npz --reference digits:train --features rae.safetensors --diversity`",
    )  # fmt: skip
    def fid(
        samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="Folder, shards, .npz, or `digits`.")],
        reference: Annotated[str, typer.Option(help="Real images, likewise.", metavar="IMAGES")],
        features: Annotated[
            str, typer.Option(help="`inception` (through clean-fid), or an RAE file.", metavar="F")
        ] = "inception",
        count: Annotated[
            int | None, typer.Option("-n", "--count", help="Use N samples only, spread evenly.", min=2, metavar="N")
        ] = None,
        diversity: Annotated[
            bool,
            typer.Option("--diversity", help="Compare the pixels too: variance within classes, nearest real images."),
        ] = False,
        batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1, metavar="N")] = 250,
        workers: options.Workers = 0,
    ) -> str:
        """Samples and real images → Fréchet distance, with its conditions, as one JSON object."""
        import json

        from mfkit.stages.evaluate import evaluate

        return json.dumps(
            evaluate(
                samples, reference, features, count=count, diversity=diversity, batch_size=batch_size, workers=workers
            ),
            indent=2,
        )
