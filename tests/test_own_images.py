"""A folder of one's own: the size comes from the images, and the chain runs on it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import failed
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf

import mfkit as package
from mfkit.data.codecs import SAID, decode_image

QUICK = "--steps 2 --batch-size 8 --log-every 1"


def photos(folder: Path, *sizes: tuple[int, int], classes: tuple[str, ...] = ("cat", "dog"), count: int = 8) -> Path:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            width, height = sizes[index % len(sizes)]
            pixels = random.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.jpg")
    return folder


@pytest.mark.parametrize(
    ("sizes", "side"),
    [([(64, 48)], 48), ([(300, 500), (90, 640), (320, 200)], 128), ([(28, 28)], 32), ([(70, 75)], 64)],
)
def test_the_size_comes_from_the_images_and_is_said(mfkit, tmp_path: Path, caplog, sizes: list, side: int) -> None:
    photos(tmp_path / "photos", *sizes)
    done = mfkit(f"train-rae photos --encoder tiny -o rae.safetensors --pretrain-steps 1 {QUICK}")
    assert done.code == 0, done.err
    config = package.load(Path("rae.safetensors")).config
    assert config.image_size == side and config.latent_shape == (32, side // 8, side // 8)
    assert f"images are cut to {side} x {side} pixels" in caplog.text and "--image-size" in caplog.text


def test_the_chain_on_a_folder(mfkit, tmp_path: Path) -> None:
    """Every command takes its preset from what it reads; the teacher can be guided."""
    photos(tmp_path / "photos", (48, 40))
    for command in (
        f"train-rae photos --encoder tiny -o rae.safetensors --pretrain-steps 1 {QUICK}",
        "encode photos --rae rae.safetensors -o latents --mirror",
        f"train-teacher latents -o teacher.safetensors {QUICK}",
        "trajectories --teacher teacher.safetensors -n 8 -o traj --solver-steps 2 --guidance 2",
        f"midtrain traj --teacher teacher.safetensors -o cmt.safetensors {QUICK}",
        f"distill --teacher teacher.safetensors --init cmt.safetensors -o mfd.safetensors {QUICK}",
        f"bootstrap --init mfd.safetensors -o mft.safetensors {QUICK}",
        "sample mft.safetensors -n 4 -o samples --grid grid.png",
        "fid samples --reference photos --features rae.safetensors",
    ):
        done = mfkit(command)
        assert done.code == 0, f"{command}\n{done.err}"
    assert json.loads(done.out)["samples"]["size"] == 40
    assert sorted(path.name for path in Path("samples").iterdir() if path.is_dir()) == ["cat", "dog"]


def test_a_flat_folder_is_one_class_and_damaged_images_are_not_looked_at(mfkit, tmp_path: Path, caplog) -> None:
    photos(tmp_path, (64, 64), classes=("flat",))
    (tmp_path / "flat/broken.png").write_bytes(b"no image")
    command = f"train-rae flat --encoder tiny -o rae.safetensors --pretrain-steps 1 {QUICK}"
    failed(mfkit(command), 3, "broken.png")
    assert "images are cut to 64 x 64" in caplog.text
    (tmp_path / "empty").mkdir()
    failed(mfkit(command.replace("flat", "empty")), 3, "holds no images")
    (tmp_path / "empty/only.png").write_bytes(b"no image")
    failed(mfkit(command.replace("flat", "empty")), 3, "none of the images")


def test_images_that_are_ignored_are_said(mfkit, tmp_path: Path, caplog) -> None:
    photos(tmp_path / "photos", (48, 48))
    Image.new("RGB", (48, 48)).save(tmp_path / "photos/stray.png")
    for name in ("cat/one.bmp", "dog/two.gif"):
        Image.new("RGB", (48, 48)).save(tmp_path / "photos" / name)
    assert mfkit(f"train-rae photos --encoder tiny -o rae.safetensors --pretrain-steps 1 {QUICK}").code == 0
    assert caplog.text.count("1 images beside its subfolders are ignored") == 1
    assert caplog.text.count("2 images of other formats are ignored") == 1


def test_an_encoder_of_other_sizes_from_timms_layout(mfkit, tmp_path: Path) -> None:
    """model_args of config.json: depth, width, heads and patch."""
    torch.manual_seed(0)
    sizes = dict(patch_size=4, embed_dim=24, depth=2, num_heads=3)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **sizes)
    save_for_hf(model, tmp_path / "hub", model_config=dict(model_args=sizes), safe_serialization=True)
    photos(tmp_path / "photos", (64, 64))
    done = mfkit(f"train-rae photos --encoder hub/model.safetensors --preset small -o rae.safetensors {QUICK}")
    assert done.code == 0, done.err
    rae = package.load(tmp_path / "rae.safetensors")
    assert rae.config.latent_shape == (24, 8, 8) and rae.config.encoder_size == 32
    given = load_file(tmp_path / "hub/model.safetensors")
    for name, value in rae.encoder.state_dict().items():
        assert torch.equal(value, given[name]), name
    config = json.loads((tmp_path / "hub/config.json").read_text())
    config["model_args"]["embed_dim"] = 48
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    again = f"train-rae photos --encoder hub/model.safetensors --preset small -o other.safetensors {QUICK}"
    failed(mfkit(again), 3, "model.safetensors")


def test_turned_transparent_and_grey_images_are_read_as_a_viewer_shows_them(tmp_path: Path, caplog) -> None:
    shades = np.arange(48 * 32, dtype=np.uint8).reshape(32, 48) // 2
    plain = Image.fromarray(shades)
    exif = Image.Exif()
    exif[0x0112] = 6  # its right side is its top
    buffers: dict[str, io.BytesIO] = {}
    for name, image, options in (
        ("grey", plain, {}),
        ("turned", plain.convert("RGB").rotate(90, expand=True), {"exif": exif}),
        ("deep", Image.fromarray(shades.astype(np.uint16) << 8), {}),
        ("clear", Image.merge("LA", (plain, Image.fromarray((shades > 60).astype(np.uint8) * 255))), {}),
        ("palette", plain.convert("P"), {"transparency": 0}),
    ):
        buffers[name] = io.BytesIO()
        image.save(buffers[name], "PNG", **options)
    SAID.clear()
    found = {name: decode_image(buffer.getvalue(), None, f"{name}.png") for name, buffer in buffers.items()}
    expected = torch.from_numpy(shades).expand(3, -1, -1)
    for name in ("grey", "turned", "deep"):
        assert torch.equal(found[name], expected), name
    assert torch.equal(found["clear"], torch.where(expected > 60, expected, 255))
    assert (found["palette"][:, expected[0] == 0] == 255).all()
    assert "turned.png, and perhaps others, are turned" in caplog.text
    assert "clear.png, and perhaps others, are transparent" in caplog.text


def test_a_flat_folder_is_one_class(mfkit, tmp_path: Path) -> None:
    photos(tmp_path / "photos", (40, 40), classes=("all",))
    (tmp_path / "photos/all").rename(tmp_path / "flat")
    for command in (
        f"train-rae flat --encoder tiny -o rae.safetensors --pretrain-steps 1 {QUICK}",
        "encode flat --rae rae.safetensors -o latents",
        f"train-teacher latents -o teacher.safetensors {QUICK}",
        "sample teacher.safetensors -n 3 --nfe 2 -o samples",
    ):
        done = mfkit(command)
        assert done.code == 0, f"{command}\n{done.err}"
    assert package.load("teacher.safetensors").config.num_classes == 1
