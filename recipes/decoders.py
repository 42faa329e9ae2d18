"""Collects what recipes/decoders.sh measured: writes decoders.md, and decoders.png of the first seed.

python recipes/decoders.py OUT
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from judge import spread

from mfkit.data.grid import write_grid
from mfkit.data.images import open_images
from mfkit.data.stream import StreamDataset

DECODERS = {
    "l1": "L1",
    "layers": "L1, the encoder's layers",
    "adversary": "L1, a discriminator on the encoder",
    "both": "L1, both",
}
COLUMNS = {
    "PSNR": ("held-out", lambda found: found["paired"]["psnr"], "{:.2f}"),
    "SSIM": ("held-out", lambda found: found["paired"]["ssim"], "{:.4f}"),
    "rFID, another encoder": ("held-out", lambda found: found["frechet_distance"], "{:.4f}"),
    "gFID, another encoder": ("drawn", lambda found: found["frechet_distance"], "{:.4f}"),
    "gFID, pixels": ("drawn", lambda found: found["spaces"]["pixels"]["frechet_distance"], "{:.4f}"),
}
"""Which result of a decoder a column is of, what of it, and how it is shown."""
SHOWN = 20


def main(out: Path) -> None:
    seeds = sorted(out.glob("seed-*/decoders"))
    lines = [[f"{len(seeds)} seeds", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for decoder, name in DECODERS.items():
        results: dict[str, list[Any]] = {
            of: [json.loads((seed / f"{decoder}-{of}.json").read_text()) for seed in seeds]
            for of in ("held-out", "drawn")
        }
        cells = [spread([value(one) for one in results[of]], form) for of, value, form in COLUMNS.values()]
        lines.append([name, *cells])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (out / "decoders.md").write_text(text)
    print(text, end="")
    rows = [_images("digits:heldout"), *(_images(str(seeds[0] / f"{decoder}-held-out.npz")) for decoder in DECODERS)]
    write_grid(out / "decoders.png", torch.cat(rows), SHOWN)


def _images(location: str) -> torch.Tensor:
    """The first, in [0, 1]."""
    dataset = open_images(location, None)
    assert not isinstance(dataset, StreamDataset)
    return torch.stack([dataset[index]["image"] for index in range(SHOWN)]).float() / 255


if __name__ == "__main__":
    main(Path(sys.argv[1]))
