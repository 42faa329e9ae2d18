"""``mfkit flops``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import DTypeName

ASSUMED_RATE = 400.0
"""10^12 operations per second: 40% of the peak of an H100 in bfloat16."""


def register(app: typer.Typer) -> None:
    @options.command(
        app, "flops",
        examples="`mfkit flops mft.safetensors`, `mfkit flops --preset imagenet256 --json`, "
        "`mfkit flops --preset imagenet256 --plan --rate 350`, "
        "`mfkit flops --preset imagenet256 --plan --bench bench.json`",
    )  # fmt: skip
    def flops(
        model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Student or teacher.")] = None,
        preset: options.Preset = None,
        rae: options.Rae = None,
        plan: Annotated[
            bool, typer.Option("--plan", help="The whole recipe of --preset: operations, bytes, GPU-days.")
        ] = False,
        rate: Annotated[
            float | None,
            typer.Option(
                help=f"For --plan: 10¹² operations a second that a GPU achieves; by default {ASSUMED_RATE:g}, which is "
                "assumed, not measured.",
                min=1e-3,
                metavar="TFLOPS",
            ),
        ] = None,
        images: Annotated[
            int | None, typer.Option(help="For --plan: training images; by default the recipe's.", min=1, metavar="N")
        ] = None,
        mirror: Annotated[
            bool | None, typer.Option("--mirror/--no-mirror", help="For --plan: encode mirror images too.")
        ] = None,
        trajectories: Annotated[
            int | None, typer.Option(help="For --plan: trajectories; by default the recipe's.", min=1, metavar="N")
        ] = None,
        solver_steps: Annotated[
            int | None,
            typer.Option(help="For --plan: steps of a trajectory; by default the preset's.", min=1, metavar="N"),
        ] = None,
        dtype: Annotated[
            DTypeName | None,
            typer.Option(help="For --plan: number format of latents and trajectories; by default the preset's."),
        ] = None,
        bench: Annotated[
            Path | None,
            typer.Option(help="For --plan: rates that `mfkit bench STAGE|all --json` measured.", metavar="FILE"),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    ) -> str:
        """Generator and decoder → 10⁹ operations per image, by counting rule. Needs no weights.

        The rules: multiply-adds without attention's products (as the MF-RAE paper counts), with them, and true FLOPs.
        """
        import json

        from mfkit.errors import UsageError
        from mfkit.evaluation.cost import measured_rates, preset_work, recipe_work, work

        if model is not None and preset is not None or model is None and rae is not None:
            raise UsageError("give a MODEL, with --rae where it is not the recorded one, or --preset alone")
        if preset is None and model is None:
            raise UsageError("give a MODEL or --preset")
        if plan and preset is None:
            raise UsageError("--plan is of a whole recipe: give --preset")
        for_plan = (rate, images, mirror, trajectories, solver_steps, dtype, bench)
        if not plan and any(value is not None for value in for_plan):
            raise UsageError(
                "--rate, --images, --mirror, --trajectories, --solver-steps, --dtype and --bench are for --plan"
            )
        if plan:
            assert preset is not None
            cost = recipe_work(
                preset, images=images, mirror=mirror, trajectories=trajectories, solver_steps=solver_steps,
                dtype=dtype, rates=measured_rates(bench) if bench else {}, rate=rate or ASSUMED_RATE,
            )  # fmt: skip
            return json.dumps(cost, indent=2) if as_json else _recipe_text(cost)
        counted = preset_work(preset) if preset else work(Path(str(model)), rae)
        return json.dumps(counted, indent=2) if as_json else _picture_text(counted)


def _picture_text(counted: dict[str, Any]) -> str:
    vanilla = counted.get("vanilla_mean_flow")
    lines = [f"{counted['unit']}, {counted['image_size']} pixels", _row("rule", "generator", "decoder", "total")]
    if vanilla:
        lines[1] += "  vanilla mean flow: generator, decoder, total, saved"
    for rule, values in counted["rules"].items():
        line = _row(rule, *(f"{values[part]:.4g}" for part in ("generator", "decoder", "total")))
        if vanilla:
            other = vanilla["rules"][rule]
            line += "  " + "".join(f"{other[part]:>9.4g}" for part in ("generator", "decoder", "total"))
            line += f"{vanilla['saved'][rule]:>8.1%}"
        lines.append(line)
    lines += [f"{rule}: {values['meaning']}" for rule, values in counted["rules"].items()]
    if vanilla:
        lines.append(f"vanilla mean flow: {vanilla['meaning']}")
    return "\n".join(lines)


def _recipe_text(cost: dict[str, Any]) -> str:
    paper = cost.get("paper", {})
    lines = [
        f"{cost['preset']}: {cost['views']:,} views of {cost['images']:,} images, "
        f"{cost['trajectories']:,} trajectories; {cost['teraflops_per_second']:g} x 10^12 operations a second where no "
        "rate was measured",
        _row("stage", "steps", "rows/step", "FLOPs/step*", "FLOPs", "10^12/s", "GPU-days", "paper", "GB on disk"),
    ]
    for name, stage in {**cost["stages"], "total": cost["total"]}.items():
        one = stage.get("flops_per_step", stage.get("flops_per_sample"))
        per_step = f"{one:.3g}" if one else ""
        reported = f"{paper[name]['gpu_days']:g}" if name in paper else ""
        lines.append(
            _row(
                name, f"{stage['steps']:,}" if "steps" in stage else "", str(stage.get("rows_per_step", "")), per_step,
                f"{stage['flops']:.3g}", f"{rate:.4g}" if (rate := stage.get("teraflops_per_second")) else "",
                f"{stage['gpu_days']:.3g}", reported,
                f"{stage['bytes'] / 1e9:,.1f}" if "bytes" in stage else "",
            )
        )  # fmt: skip
    lines.append("* per image and per trajectory where there are no steps; matrix products alone are counted")
    lines += [
        f"{name}: the paper {told['why']}: {told['flops']:.3g} FLOPs in its {told['gpu_days']:g} days are "
        f"{told['teraflops_per_second']:.0f} x 10^12 a second"
        for name, told in paper.items()
    ]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells)
