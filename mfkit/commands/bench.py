"""``mfkit bench``."""

from typing import Annotated, Any

import typer

from mfkit.benchmark.settings import STAGES, BenchSettings
from mfkit.commands import options
from mfkit.commands.subcommand import command


@command(
    "Cost", BenchSettings,
    examples="""
    mfkit bench distill --model S --tokens 64
    mfkit bench all --precision bf16 --compile --json > bench.json
    mfkit plan --preset imagenet256 --bench bench.json
    """,
)  # fmt: skip
def bench(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=f"{', '.join(STAGES)}, or all.")],
    flags: options.Flags,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> str | None:
    """Measure the stages on this machine.

    Samples a second, the share of the device's own matrix products, and peak memory, on random weights and data.
    """
    import json

    from mfkit.benchmark.bench import bench
    from mfkit.config.presets import resolve

    measured = bench(stage, resolve(BenchSettings, "bench", None, flags))
    if as_json:
        found = {figures["stage"]: figures for figures in measured}
        return json.dumps(found if stage == "all" else found[stage], indent=2)
    header = _row("stage", "rows", "rows/s", "10^12/s", "of matmul", "GB peak", "GB/s")
    return "\n".join([header, *(_text(figures) for figures in measured)])


def _text(figures: dict[str, Any]) -> str:
    rate, share = figures.get("flops_per_second"), figures.get("share_of_matmul")
    read, peak = figures.get("bytes_per_second"), figures["peak_bytes"]
    return _row(
        figures["stage"], str(figures["batch_size"]), f"{figures['samples_per_second']:.4g}",
        f"{rate / 1e12:.3g}" if rate else "", f"{share:.0%}" if share else "", f"{peak / 1e9:.2f}" if peak else "",
        f"{read / 1e9:.2f}" if read else "",
    )  # fmt: skip


def _row(name: str, *cells: str) -> str:
    return f"{name:<16}" + "".join(f"{cell:>10}" for cell in cells)
