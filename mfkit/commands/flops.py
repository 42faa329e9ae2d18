"""``mfkit flops``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command


@command(
    "Cost",
    examples="""
    mfkit flops mft.safetensors
    mfkit flops --preset imagenet256 --json
    """,
)  # fmt: skip
def flops(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Student's or teacher's file.")] = None,
    preset: Annotated[
        options.PresetName | None, typer.Option(help="Instead of a MODEL: the networks of a preset.")
    ] = None,
    rae: options.Rae = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> str:
    """Count the operations of one image.

    10⁹ operations of generator and decoder, by three counting rules: multiply-adds without attention's products (as
    the MF-RAE paper counts), with them, and true FLOPs. No weights are read. A whole recipe: mfkit plan.
    """
    import json

    from mfkit.errors import UsageError
    from mfkit.evaluation.cost import model_flops, preset_flops

    if (model is None) == (preset is None) or (model is None and rae is not None):
        raise UsageError("pass a MODEL, with --rae where it is not the recorded one, or --preset alone")
    counted = preset_flops(preset) if preset else model_flops(Path(str(model)), rae)
    return json.dumps(counted, indent=2) if as_json else _text(counted)


def _text(counted: dict[str, Any]) -> str:
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


def _row(name: str, *cells: str) -> str:
    return f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells)
