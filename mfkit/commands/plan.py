"""``mfkit plan``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import DTypeName


@command(
    "Cost",
    examples="""
    mfkit plan --preset imagenet256
    mfkit plan --preset imagenet256 --rate 350 --json
    mfkit bench all --preset imagenet256 --json > bench.json
    mfkit plan --preset imagenet256 --bench bench.json
    """,
)  # fmt: skip
def plan(
    preset: Annotated[options.PresetName, typer.Option(help="Whose recipe.")],
    rate: Annotated[
        float,
        typer.Option(
            help="10¹² operations a second that a GPU achieves; the default is assumed, not measured: 40% of "
            "the peak of an H100 in bfloat16.",
            min=1e-3,
            metavar="TFLOPS",
        ),
    ] = 400,
    bench: Annotated[
        Path | None, typer.Option(help="Rates that `mfkit bench STAGE|all --json` measured.", metavar="FILE")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Training images.  [default: the recipe's]", min=1, metavar="N")
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option("--mirror/--no-mirror", help="Encode mirror images too.  [default: as the recipe]"),
    ] = None,
    trajectories: Annotated[
        int | None, typer.Option(help="Trajectories.  [default: the recipe's]", min=1, metavar="N")
    ] = None,
    solver_steps: Annotated[
        int | None, typer.Option(help="Steps of a trajectory.  [default: the preset's]", min=1, metavar="N")
    ] = None,
    dtype: Annotated[
        DTypeName | None,
        typer.Option(help="Number format of latents and trajectories.  [default: the preset's]"),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="Objective of the stages that offer it, in the place of their default; repeatable.", metavar="NAME"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> str:
    """Plan the cost of a whole recipe.

    Operations, bytes on disk and GPU-days of each stage from encode to bootstrap, before anything is begun. (A decoder
    is mostly imported, so train-rae is not counted.)
    """
    import json

    from mfkit.evaluation.cost import measured_rates, recipe_cost

    cost = recipe_cost(
        preset, images=images, mirror=mirror, trajectories=trajectories, solver_steps=solver_steps, dtype=dtype,
        rates=measured_rates(bench) if bench else {}, rate=rate, objectives=objective or (),
    )  # fmt: skip
    return json.dumps(cost, indent=2) if as_json else _text(cost, objective or [])


def _text(cost: dict[str, Any], objectives: list[str]) -> str:
    paper = cost.get("paper", {})
    lines = [
        f"{cost['preset']}: {cost['views']:,} views of {cost['images']:,} images, "
        f"{cost['trajectories']:,} trajectories; {cost['teraflops_per_second']:g} x 10^12 operations a second where no "
        "rate was measured",
        _row("stage", "steps", "samples*", "FLOPs*", "GB read*", "FLOPs", "10^12/s", "GPU-days", "paper", "GB on disk"),
    ]
    short = cost["drifting"]
    rows = {**cost["stages"], "total": cost["total"], "drifting**": short["stage"], "total with it": short["total"]}
    for name, stage in rows.items():
        named = f" {stage['objective']}" if name in cost["stages"] and stage.get("objective") in objectives else ""
        one = stage.get("flops_per_step", stage.get("flops_per_sample"))
        lines.append(
            _row(
                name + named,
                f"{stage['steps']:,}" if "steps" in stage else "", str(stage.get("samples_per_step", "")),
                f"{one:.3g}" if one else "",
                f"{stage['bytes_read_per_step'] / 1e9:.3g}" if "bytes_read_per_step" in stage else "",
                f"{stage['flops']:.3g}",
                f"{stage['teraflops_per_second']:.4g}" if "teraflops_per_second" in stage else "",
                f"{stage['gpu_days']:.3g}", f"{paper[name]['gpu_days']:g}" if name in paper else "",
                f"{stage['bytes'] / 1e9:,.1f}" if "bytes" in stage else "",
            )
        )  # fmt: skip
    lines += [
        "*  a step; an image or trajectory where there are no steps. Matrix products alone are counted",
        "** bootstrap --objective drifting, after midtrain, in the place of distill and bootstrap",
    ]
    lines += [
        f"{name}: the paper {spent['why']}: {spent['flops']:.3g} FLOPs in its {spent['gpu_days']:g} days are "
        f"{spent['teraflops_per_second']:.0f} x 10^12 a second"
        for name, spent in paper.items()
    ]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells)
