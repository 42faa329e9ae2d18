"""``mfkit bench``."""

from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import ModelName, PrecisionName, PresetName


def register(app: typer.Typer) -> None:
    @options.command(
        app, "bench",
        examples="`mfkit bench distill --model S --batch-size 8`, "
        "`mfkit bench all --precision bf16 --compile --json > bench.json`, "
        "`mfkit flops --preset imagenet256 --plan --bench bench.json`",
    )  # fmt: skip
    def bench(
        stage: Annotated[
            str,
            typer.Argument(
                metavar="STAGE|all",
                help="encode, train-teacher, midtrain, distill, bootstrap, trajectories, sample; also loader and "
                "derivative.",
            ),
        ],
        preset: Annotated[PresetName, typer.Option(help="Shapes and settings.")] = "imagenet256",
        model: Annotated[
            ModelName | None, typer.Option(help="Size of the generator; by default the preset's, on a CPU at most S.")
        ] = None,
        batch_size: Annotated[
            int | None,
            typer.Option(help="Rows of a step, over all processes; by default 32 on a GPU, 8 on a CPU.", min=1),
        ] = None,
        tokens: Annotated[
            int | None, typer.Option(help="Tokens of a latent, a square number; by default the preset's.", min=1)
        ] = None,
        precision: Annotated[PrecisionName, typer.Option(help="Precision of matrix products.")] = "float32",
        compile: Annotated[bool, typer.Option("--compile", help="Compile blocks, in the training stages.")] = False,
        activation_checkpointing: Annotated[
            bool, typer.Option("--activation-checkpointing", help="Make activations again, in the training stages.")
        ] = False,
        plain: Annotated[
            bool, typer.Option("--plain/--no-plain", help="Time the plain formulation too, in the training stages.")
        ] = True,
        rounds: Annotated[int, typer.Option(help="Times that each thing is timed, in turn.", min=1, metavar="N")] = 3,
        as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    ) -> str:
        """What a stage takes on this machine, beside the obvious way.

        Inputs are random, of the right shapes, in a temporary folder (TMPDIR). Training stages: a step beside the
        plain formulation (in float32, on a GPU TF32, not compiled), one evaluation of the network with gradients, and
        the loader. The others: the stage beside its networks alone. Medians of --rounds.
        """
        import json

        import torch

        from mfkit.benchmark.request import BenchRequest
        from mfkit.benchmark.run import bench as run_bench
        from mfkit.benchmark.run import bench_all
        from mfkit.config.presets import MODELS

        if model is None:
            model = MODELS[preset] if torch.accelerator.is_available() or preset == "digits" else "S"
        request = BenchRequest(
            preset=preset, model=model, batch_size=batch_size, precision=precision, compile=compile,
            activation_checkpointing=activation_checkpointing, plain=plain, rounds=rounds,
        )  # fmt: skip
        if stage != "all":
            measured = run_bench(stage, request, tokens)
            return json.dumps(measured, indent=2) if as_json else _text(measured)
        all_of_them = bench_all(request, tokens)
        return json.dumps(all_of_them, indent=2) if as_json else "\n\n".join(map(_text, all_of_them.values()))


def _text(measured: dict[str, Any]) -> str:
    machine = measured["machine"]
    compiled = ", compiled" if measured["compile"] else ""
    lines = [
        f"{measured['stage']}: {measured['model']}, {measured['tokens']} tokens, batch {measured['batch_size']}, "
        f"{measured['precision']}{compiled}, on {machine['device']} ({machine['threads']} threads)"
    ]
    for name, value in measured.items():
        if name == "ways":
            for way in value:
                what = f"{way['derivative']}, {way['precision']}"
                lines.append(f"  {what:<28}error {way['error']:.2e}{way['seconds']:>10.3g} s")
        elif isinstance(value, float):
            lines.append(f"  {name.replace('_', ' '):<28}{_number(name, value)}")
        elif name.endswith("bytes") and value:
            lines.append(f"  {name.replace('_', ' '):<28}{value / 2**20:,.0f} MiB")
    return "\n".join(lines)


def _number(name: str, value: float) -> str:
    if name.endswith("flops_per_second"):
        return f"{value / 1e12:.3g} x 10^12"
    if name.endswith("bytes_per_second"):
        return f"{value / 2**20:,.0f} MiB/s"
    if name == "mfu" or "share" in name:
        return f"{value:.1%}"
    return f"{value:.3g}"
