"""Collects what recipes/decoders.sh measured: writes decoders.md; decoders.png of the first seed, decoders-emoji.png.

python recipes/decoders.py OUT [EMOJI]
"""

import json
import sys
from collections.abc import Mapping
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
    "sharpness": ("held-out", lambda found: found["sharpness"], "{:.3f}"),
    "rFID, another encoder": ("held-out", lambda found: found["frechet_distance"], "{:.4f}"),
    "gFID, another encoder": ("drawn", lambda found: found["frechet_distance"], "{:.4f}"),
    "gFID, pixels": ("drawn", lambda found: found["spaces"]["pixels"]["frechet_distance"], "{:.4f}"),
}
"""Which result of a decoder a column is of, what of it, and how it is shown."""
SHOWN = 20


def main(out: Path, emoji: Path | None) -> None:
    seeds = sorted(out.glob("seed-*/decoders"))
    text = _table(f"{len(seeds)} seeds", DECODERS, seeds, "digits:heldout")
    _picture(out / "decoders.png", DECODERS, seeds[0], "digits:heldout")
    if emoji:
        decoders = {"recipe": "of emoji.sh"} | DECODERS
        folder, held_out = emoji / "decoders", str(emoji / "images/heldout")
        text += "\n" + _table("emoji, one seed", decoders, [folder], held_out)
        _picture(out / "decoders-emoji.png", decoders, folder, held_out)
    (out / "decoders.md").write_text(text)
    print(text, end="")


def _table(heading: str, decoders: Mapping[str, str], folders: list[Path], held_out: str) -> str:
    lines = [[heading, *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    real = _differences(_images(held_out))
    for decoder, name in decoders.items():
        results: dict[str, list[Any]] = {
            of: [json.loads((folder / f"{decoder}-{of}.json").read_text()) for folder in folders]
            for of in ("held-out", "drawn")
        }
        for folder, found in zip(folders, results["held-out"], strict=True):
            found["sharpness"] = _differences(_images(str(folder / f"{decoder}-held-out.npz"))) / real
        cells = [spread([value(one) for one in results[of]], form) for of, value, form in COLUMNS.values()]
        lines.append([name, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _picture(path: Path, decoders: Mapping[str, str], folder: Path, held_out: str) -> None:
    """A row of real images, and one of each decoder's."""
    rows = [_images(held_out), *(_images(str(folder / f"{decoder}-held-out.npz")) for decoder in decoders)]
    chosen = torch.linspace(0, len(rows[0]) - 1, SHOWN).long()
    write_grid(path, torch.cat([row[chosen] for row in rows]), SHOWN)


def _differences(images: torch.Tensor) -> float:
    """How much neighbouring pixels differ, the mean."""
    return float((images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2)


def _images(location: str) -> torch.Tensor:
    """(N, 3, S, S) in [0, 1]."""
    dataset = open_images(location, None)
    assert not isinstance(dataset, StreamDataset)
    return torch.stack([dataset[index]["image"] for index in range(len(dataset))]).float() / 255


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
