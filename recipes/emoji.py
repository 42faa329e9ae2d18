"""Draws emoji of the Noto Color Emoji font as images, a subfolder per group, for recipes/emoji.sh.

python recipes/emoji.py FOLDER      # FOLDER/train, and FOLDER/heldout with every tenth
"""

import shutil
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
PACKAGES = {FONT: "fonts-noto-color-emoji", LIST: "unicode-data"}
STRIKE = 109
"""Size in which the font holds its pictures, of 136 x 128 pixels."""
SIDE = 64
HELD_OUT = 10
"""One in so many is kept from training."""
JOINER, SKIN_TONES = 0x200D, range(0x1F3FB, 0x1F400)


def emoji() -> list[tuple[str, str]]:
    """(group, characters) of all that are one picture: no joined ones, no skin tones, no flags."""
    found, group = [], ""
    for line in LIST.read_text().splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        codes, _, rest = line.partition(";")
        if line.startswith("#") or not rest.strip().startswith("fully-qualified") or group in ("Component", "Flags"):
            continue
        points = [int(code, 16) for code in codes.split()]
        if JOINER not in points and not any(point in SKIN_TONES for point in points):
            found.append((group, "".join(map(chr, points))))
    return found


def draw(characters: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """On white, SIDE x SIDE; None where the font has no picture."""
    picture = Image.new("RGB", (STRIKE * 2, STRIKE * 2), "white")
    ImageDraw.Draw(picture).text((STRIKE // 2, STRIKE // 2), characters, font=font, embedded_color=True)
    box = Image.eval(picture.convert("L"), lambda value: 255 - value).getbbox()
    if box is None:
        return None
    cut = picture.crop(box)
    side = round(max(cut.size) * 1.06)
    square = Image.new("RGB", (side, side), "white")
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def main(folder: Path) -> None:
    for file, package in PACKAGES.items():
        if not file.exists():
            sys.exit(f"{file} is missing: apt install {package}")
    font = ImageFont.truetype(str(FONT), STRIKE)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    count = 0
    for number, (group, characters) in enumerate(emoji()):
        image = draw(characters, font)
        if image is None:
            continue
        part = "heldout" if count % HELD_OUT == 0 else "train"
        place = partial / part / group.lower().replace(" & ", "-").replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:04d}.png")
        count += 1
    partial.rename(folder)
    print(f"{count} emoji in {len(list((folder / 'train').iterdir()))} groups")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
