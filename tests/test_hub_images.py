"""Datasets of the hub as IMAGES, from a stand-in of it on this machine."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub import Hub, serving
from PIL import Image

from mfkit.data.latents import open_latents

datasets = pytest.importorskip("datasets")
NAMES = ["emu", "dog", "cat"]


def png(value: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (12, 10), (value, 0, 255 - value)).save(held, "png")
    return held.getvalue()


def rows(count: int, **more: list) -> datasets.Dataset:
    columns = {
        "picture": [{"bytes": png(10 * i), "path": None} for i in range(count)],
        "kind": [i % 3 for i in range(count)],
    }
    kinds = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    held = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    for name, values in more.items():
        held = held.add_column(name, values)
    return held


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    place = tmp_path_factory.mktemp("datasets")
    (place / "pets" / "data").mkdir(parents=True)
    rows(8, colour=["red", "blue"] * 4).to_parquet(place / "pets" / "data" / "train-00000-of-00001.parquet")
    rows(3, colour=["red"] * 3).to_parquet(place / "pets" / "data" / "test-00000-of-00001.parquet")
    (place / "other").mkdir()
    other = rows(4, number=[5, 0, 2, 0], caption=["a", "b", "c", "d"])
    other.to_parquet(place / "other" / "train.parquet")
    (place / "words").mkdir()
    datasets.Dataset.from_dict({"text": ["no", "pictures"]}).to_parquet(place / "words" / "train.parquet")
    with serving() as hub:
        for name in ("pets", "other", "words"):
            hub.add(f"datasets/me/{name}", place / name)
        yield hub


@pytest.fixture
def mfkit_there(hub: Hub, tmp_path_factory: pytest.TempPathFactory):
    """Runs the command line in a process that takes the stand-in for the hub."""
    home = tmp_path_factory.getbasetemp() / "hub-home"

    def there(*arguments: object, offline: bool = False) -> subprocess.CompletedProcess[str]:
        environment = os.environ | hub.environment(home) | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        command = [sys.executable, "-m", "mfkit", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return there


def test_a_dataset_is_images(mfkit_there, mfkit, chain: Path, tmp_path: Path) -> None:
    """The same latents as of the same pictures in a folder; fetched once, and then without the hub."""
    location = "hf://datasets/me/pets"
    done = mfkit_there("encode", location, "--rae", chain / "rae.safetensors", "-o", "latents")
    assert done.returncode == 0, done.stderr
    found = open_latents("latents", "latents")
    assert found.class_names == NAMES
    columns = found.dataset.read(range(8))
    assert columns["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    for number in range(8):
        folder = tmp_path / "folder" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(10 * number))
    assert mfkit(f"encode folder --rae {chain}/rae.safetensors -o again").code == 0
    again = open_latents("latents", "again").dataset.read(range(8))["latent"]
    assert np.allclose(columns["latent"][[0, 3, 6, 1, 4, 7, 2, 5]], again, atol=2e-3)
    offline = mfkit_there(
        "encode", f"{location}?label=colour", "--rae", chain / "rae.safetensors", "-o", "colours", offline=True
    )
    assert offline.returncode == 0, offline.stderr
    colours = open_latents("latents", "colours")
    assert colours.class_names == ["blue", "red"]
    assert colours.dataset.read(range(8))["label"].tolist() == [1, 0] * 4
    recorded = json.loads(Path("colours/index.json").read_text())["provenance"]["inputs"]["images"]
    assert recorded["path"].endswith("me/pets?label=colour")


def test_splits_and_what_is_refused(hub: Hub, tmp_path: Path) -> None:
    refused = {
        ":nosuch": "nosuch",
        "?label=picture": "picture is no column of labels; there are kind, colour",
        "?colour=1": "give hf://datasets/owner/name",
        "?label": "give hf://datasets/owner/name",
        "/../words": "has no column of images",
        "/../nothing": "me/nothing",
    }
    program = f"""
import os
from mfkit.data.images import open_images
from mfkit.errors import MfkitError
for more in {list(refused)}:
    try:
        open_images(os.path.normpath("datasets/me/pets" + more).join(["hf://", ""]), 8)
    except MfkitError as error:
        print(error)
    else:
        print("taken")
test = open_images("hf://datasets/me/pets@main:test", 8)
digests = {{open_images(f"hf://datasets/me/{{name}}", 8).artifact.digest for name in ("pets", "other", "pets:test")}}
numbered = open_images("hf://datasets/me/other?label=number", 8)
print(len(test), len(digests), numbered.artifact.config["class_names"], [numbered[i]["label"] for i in range(3)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | hub.environment(tmp_path), capture_output=True, text=True
    )
    *told, count = done.stdout.splitlines()
    assert count == "3 3 ['0', '1', '2', '3', '4', '5'] [5, 0, 2]", done.stderr
    for line, words in zip(told, refused.values(), strict=True):
        assert words in line
