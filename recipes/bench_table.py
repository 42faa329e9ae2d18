"""The JSON of ``mfkit bench STAGE`` as one Markdown table: ``python recipes/bench_table.py FILE...``."""

import json
import sys
from pathlib import Path
from typing import Any


def row(figures: dict[str, Any]) -> str:
    rate, share, read = (figures.get(name) for name in ("flops_per_second", "share_of_matmul", "bytes_per_second"))
    peak = figures["peak_bytes"]
    cells = [
        figures["stage"], _options(figures), figures["network"]["width"], figures["network"]["side"] ** 2,
        figures["batch_size"], f"{figures['samples_per_second']:.4g}", f"{figures['seconds']:.3g} s",
        f"{rate / 1e12:.3g}" if rate else "", f"{share:.0%}" if share else "", f"{peak / 1e9:.1f} GB" if peak else "",
        f"{read / 1e9:.2f}" if read else "",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _options(figures: dict[str, Any]) -> str:
    flags = [name for name in ("late_r", "compile", "activation_checkpointing") if figures.get(name)]
    return " ".join([figures.get("objective", ""), *flags]).strip()


def main(paths: list[str]) -> None:
    found = [json.loads(Path(path).read_text()) for path in paths]
    if not found:
        sys.exit("nothing was measured")
    machine = found[0]["machine"]
    print(
        f"{machine['device']}, torch {machine['torch']}, {machine['threads']} threads, {found[0]['precision']}; "
        "matrix products reach "
        f"{max(one.get('matmul_flops_per_second', 0) for one in found) / 1e12:.3g} x 10^12 operations a second\n"
    )
    print(
        "| stage | options | width | tokens | rows | rows/s | a round | 10^12 operations/s | of matrix products "
        "| peak memory | GB/s read |"
    )
    print("|---" * 11 + "|")
    for figures in found:
        print(row(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
