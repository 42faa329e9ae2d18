"""mfkit decode: the inverse of encode, whatever it reads and writes."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed
from PIL import Image
from torch import Tensor

import mfkit as package
from mfkit.data.images import open_images
from mfkit.data.latents import open_latents


def pixels(location: Path) -> Tensor:
    """(N, 3, S, S) uint8, in the order of a folder's classes."""
    dataset = open_images(str(location), None)
    return torch.stack([dataset[index]["image"] for index in range(len(dataset))])


def by_hand(chain: Path, latents: Tensor) -> Tensor:
    with torch.no_grad():
        images = package.load(chain / "rae.safetensors").decode(latents.float())
    return (images.double() * 255).round().to(torch.uint8)


def alike(one: Tensor, other: Tensor) -> bool:
    """But for rounding to another byte."""
    return one.shape == other.shape and int((one.int() - other.int()).abs().max()) <= 1


@pytest.fixture
def latents(mfkit, chain: Path, tmp_path: Path) -> Tensor:
    """Of the held-out digits, in ``latents``; returned as they are stored."""
    assert mfkit(f"encode digits:heldout --rae {chain}/rae.safetensors -o latents").code == 0
    dataset = open_latents("latents", "latents").dataset
    return torch.stack([dataset[index]["latent"] for index in range(len(dataset))])


def test_every_output_holds_what_the_decoder_makes(mfkit, chain: Path, tmp_path: Path, latents: Tensor) -> None:
    for output in ("shards --format tar", "images.npz", "folder"):
        done = mfkit(f"decode latents -o {output} --batch-size 70")
        assert done.code == 0 and done.out == f"{output.split()[0]}\n", done.err
    expected = by_hand(chain, latents)
    found = pixels(tmp_path / "shards")
    assert alike(found, expected)
    assert torch.equal(pixels(tmp_path / "images.npz"), found)
    labels = torch.tensor(open_images("digits:heldout", 32).labels)
    with np.load(tmp_path / "images.npz") as held:
        assert held["arr_1"].tolist() == labels.tolist()
    assert torch.equal(pixels(tmp_path / "folder"), found[labels.argsort(stable=True)])  # a folder is sorted by class


def test_a_pipe_from_images_to_images(mfkit, chain: Path, tmp_path: Path, latents: Tensor, monkeypatch) -> None:
    """Without a disk: the same images; and the stream knows its autoencoder."""
    (tmp_path / "s.tar").write_bytes(mfkit(f"encode digits:heldout --rae {chain}/rae.safetensors -o -").raw)
    with (tmp_path / "s.tar").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        piped = mfkit("decode - -o -")
    assert piped.code == 0, piped.err
    with tarfile.open(fileobj=io.BytesIO(piped.raw)) as tar:
        names = [name for name in tar.getnames() if name.endswith(".png")]
        images = [np.asarray(Image.open(tar.extractfile(name))) for name in names]
    assert alike(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), by_hand(chain, latents))
    with (tmp_path / "s.tar").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert mfkit("decode - -o images").code == 0
    (tmp_path / "i.tar").write_bytes(piped.raw)
    rfid = f"--reference digits:heldout --features {chain}/rae.safetensors"
    with (tmp_path / "i.tar").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        streamed = json.loads(mfkit(f"fid - {rfid}").out)
    kept = json.loads(mfkit(f"fid images {rfid}").out)
    assert streamed["frechet_distance"] == pytest.approx(kept["frechet_distance"], rel=1e-6)
    line = f"mfkit encode digits:heldout --rae {chain}/rae.safetensors -o - |"
    assert mfkit("inspect images --script").out.endswith(f"\n{line}\n    mfkit decode - -o images\n")
    for output in ("x.npz", "x --grid g.png"):
        with (tmp_path / "s.tar").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            failed(mfkit(f"decode - -o {output}"), 2, "of a known number of images")


def test_the_ends_of_trajectories(mfkit, chain: Path, tmp_path: Path) -> None:
    assert mfkit(f"decode {chain}/traj -o ends.npz").code == 0
    dataset = open_latents("trajectories", str(chain / "traj")).dataset
    ends = torch.stack([dataset[index]["states"][-1] for index in range(len(dataset))])
    assert alike(pixels(tmp_path / "ends.npz"), by_hand(chain, ends))


def test_a_grid_of_images_over_what_is_left_of_them(mfkit, chain: Path, tmp_path: Path) -> None:
    """Mirror images stand under their mirror images."""
    command = f"encode digits:heldout --rae {chain}/rae.safetensors -o mirrored --mirror"
    assert mfkit(command).code == 0
    done = mfkit("decode mirrored --grid pairs.png --compare 14")
    assert done.code == 0 and done.out == "pairs.png\n", done.err
    grid = np.asarray(Image.open(tmp_path / "pairs.png"))
    tiles = torch.from_numpy(grid).unflatten(0, (4, 66)).unflatten(2, (10, 66))
    tiles = tiles[:, 1:-1:2, :, 1:-1:2].permute(0, 2, 4, 1, 3)  # 32 pixels are drawn as 64
    originals, stored = open_images("digits:heldout", 32), open_latents("latents", "mirrored").dataset
    by_class = sorted(range(len(stored)), key=lambda index: (stored[index]["label"], index))
    places = sorted(by_class[place * len(stored) // 14] for place in range(14))
    assert {stored[place]["label"] for place in places} == set(range(10))
    real = [originals[place // 2]["image"].flip([-1] if place % 2 else []) for place in places]
    assert any(place % 2 for place in places)
    assert torch.equal(torch.cat([tiles[0], tiles[2][:4]]), torch.stack(real))
    decoded = by_hand(chain, torch.stack([stored[place]["latent"] for place in places]))
    assert alike(torch.cat([tiles[1], tiles[3][:4]]), decoded)


def test_what_cannot_be_decoded_or_compared(mfkit, chain: Path, tmp_path: Path, latents: Tensor) -> None:
    failed(mfkit("decode latents"), 2, "nothing to write")
    failed(mfkit("decode latents -o x --compare 3"), 2, "--compare draws into --grid")
    failed(mfkit("decode latents -o x --images digits"), 2, "--compare N")
    failed(mfkit(f"decode {chain}/traj --grid g.png --compare 3"), 2, "of no images")
    failed(mfkit(f"decode {chain}/samples -o x"), 3, "is a images file; expected: latents or trajectories")
    train = "train-rae digits:heldout --encoder tiny --pretrain-steps 1 --steps 1 --batch-size 8 -o other.safetensors"
    assert mfkit(train).code == 0
    failed(mfkit("decode latents -o x --rae other.safetensors"), 3, "another autoencoder")
    (tmp_path / "images/0").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (32, 32), number).save(tmp_path / f"images/0/{number}.png")
    assert mfkit(f"encode images --rae {chain}/rae.safetensors -o own --preset digits").code == 0
    failed(mfkit("decode own --grid g.png --compare 3 --images digits --overwrite --rae nothing"), 3, "nothing")
    shutil.rmtree(tmp_path / "images")
    failed(mfkit("decode own --grid g.png --compare 3"), 3, "is gone; pass --images")
    assert not (tmp_path / "x").exists() and not (tmp_path / "g.png").exists()
