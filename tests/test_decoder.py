"""The decoder's losses: LPIPS, the encoder's own layers, a discriminator; latents of several layers."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import failed, several_as_script, shell, stopped_once
from hub import serving
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor

import mfkit as package
from mfkit.autoencoders.discriminator import Discriminator, augmented, hinge_loss
from mfkit.autoencoders.encoders import open_encoder
from mfkit.autoencoders.perceptual import lpips
from mfkit.data.crops import random_crops
from mfkit.flow.random import Draws
from mfkit.training.checkpoint import checkpoints

TRAIN = (
    "train-rae digits:heldout --encoder tiny --pretrain-steps 2 --steps 8 --batch-size 16 --log-every 1 "
    "--optimizer adamw -o {}.safetensors"
)
ADVERSARY = " --perceptual encoder --discriminator encoder --discriminator-start 0.25 --adversarial-start 0.5"


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lpips_by_torchmetrics(mfkit, tmp_path: Path) -> None:
    """With VGG's layers at random, and the published weights of their differences."""
    pytest.importorskip("torchmetrics")
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import vgg16

    torch.manual_seed(0)
    vgg = vgg16(weights=None)
    torch.save(vgg.state_dict(), tmp_path / "vgg.pth")
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    numbered = dict(vgg.features.named_children())
    for slice_ in ("slice1", "slice2", "slice3", "slice4", "slice5"):
        for number, layer in getattr(theirs.net, slice_).named_children():
            layer.load_state_dict(numbered[number].state_dict())
    one, other = torch.rand(2, 3, 3, 64, 64)
    ours = lpips(torch.device("cpu"), tmp_path / "vgg.pth")
    with torch.no_grad():
        expected = theirs(one, other, normalize=True).flatten()
        assert torch.allclose(ours(one, other), expected, rtol=1e-4) and ours(one, one).abs().max() < 1e-6
    train = TRAIN.format("sharp").replace("--steps 8 --batch-size 16", "--steps 1 --batch-size 4")
    assert mfkit(f"{train} --perceptual vgg.pth").code == 0
    assert lines(tmp_path / "sharp.log.jsonl")[0]["perceptual"] > 0


def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(open_encoder("tiny", 4)).eval()


def test_scores_do_not_depend_on_the_rest_of_a_batch() -> None:
    """Pictures are normalised in groups of eight; in use, spectral norms do not move."""
    network, images = discriminator(), torch.rand(24, 3, 32, 32)
    with torch.no_grad():
        whole = network(images)
        assert torch.allclose(torch.cat([network(part) for part in images.split(8)]), whole, atol=1e-5)
    assert whole.shape == (24, 5 * 16) and whole.std() > 0
    assert all("trunk" not in name for name, value in network.named_parameters() if value.requires_grad)


class Middle:
    """Draws that change nothing, but for what is said otherwise."""

    def __init__(self, **other: float) -> None:
        self.values = [other.get(name, 0.5) for name in ("brightness", "saturation", "contrast", "right", "down")]

    def uniform(self, name: str, count: int) -> Tensor:
        return torch.tensor(self.values).expand(2, count)


def test_each_augmentation_by_hand() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(augmented(images, Middle(), "x"), images, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(augmented(images, Middle(brightness=0.9), "x"), images + 0.2, atol=1e-6)  # type: ignore[arg-type]
    grey = augmented(images, Middle(saturation=0), "x")  # type: ignore[arg-type]
    assert torch.allclose(grey, images.mean(1, keepdim=True).expand(-1, 3, -1, -1), atol=1e-6)
    flat = augmented(images, Middle(contrast=0), "x")  # type: ignore[arg-type]
    assert torch.allclose(flat.std((1, 2, 3)), images.std((1, 2, 3)) / 2, rtol=1e-4)
    moved = augmented(images, Middle(right=0.99, down=0), "x")  # type: ignore[arg-type]
    expected = F.pad(images, (0, 2, 2, 0))[:, :, :16, 2:]  # by an eighth of the side: to the left, and down
    assert torch.allclose(moved, expected, atol=1e-6)
    one = augmented(images, Draws(0, "a", [0, 1]), "x")
    assert torch.equal(one[1:], augmented(images[1:], Draws(0, "a", [1]), "x")) and not torch.equal(one, images)


def test_hinge_by_hand() -> None:
    assert hinge_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])) == pytest.approx((0.25 + 0.5) / 2)


def test_the_discriminator_starts_first_and_learns(mfkit, tmp_path: Path) -> None:
    done = mfkit(TRAIN.format("a").replace("--steps 8", "--steps 40") + ADVERSARY + " --learning-rate 2e-3")
    assert done.code == 0, done.err
    found = lines(tmp_path / "a.log.jsonl")
    assert [("discriminator" in line, "adversarial" in line) for line in found] == (
        10 * [(False, False)] + 10 * [(True, False)] + 20 * [(True, True)]
    )
    assert all(line["perceptual"] > 0 for line in found)
    early, late = (sum(line["discriminator"] for line in part) / 5 for part in (found[10:15], found[15:20]))
    assert late < early  # as long as the decoder does not answer
    assert mfkit("plot a.log.jsonl -o curves.png").code == 0


def test_a_discriminator_on_a_network_from_a_file(mfkit, tmp_path: Path) -> None:
    """In the layout of timm's hub; pictures of 32 pixels are seen at the size that it was made for."""
    torch.manual_seed(0)
    sizes = dict(embed_dim=24, depth=4, num_heads=3)
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    save_for_hf(trunk, tmp_path / "hub", model_config=dict(model_args=sizes), safe_serialization=True)
    command = TRAIN.replace("--steps 8", "--steps 3") + ADVERSARY.replace("--discriminator encoder", "{}")
    for name, options in (("own", "--discriminator encoder"), ("given", "--discriminator hub/model.safetensors")):
        done = mfkit(command.format(name, options))
        assert done.code == 0, done.err
    own, given = (lines(tmp_path / f"{name}.log.jsonl")[-1] for name in ("own", "given"))
    assert given["discriminator"] > 0 and given["adversarial"] != own["adversarial"]


def test_networks_of_the_hub(tmp_path: Path) -> None:
    """Encoder, discriminator's trunk and VGG, named as hf://, train as the same files of this machine do."""
    pytest.importorskip("torchmetrics")
    from torchvision.models import vgg16

    torch.manual_seed(0)
    sizes = dict(embed_dim=24, depth=4, num_heads=3)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    save_for_hf(network, tmp_path / "here", model_config=dict(model_args=sizes), safe_serialization=True)
    torch.save(vgg16(weights=None).features.state_dict(prefix="features."), tmp_path / "here" / "vgg.pth")
    command = (
        "train-rae digits:heldout --preset digits --steps 2 --batch-size 2 --log-every 1 -o {0}.safetensors "
        "--encoder {1}/model.safetensors --discriminator {1}/model.safetensors --perceptual {1}/vgg.pth "
        "--discriminator-start 0 --adversarial-start 0"
    )
    with serving() as hub:
        hub.add("someone/networks", tmp_path / "here")
        places = {"a": "here", "b": "hf://someone/networks"}
        script = several_as_script(tmp_path, *(command.format(*each) for each in places.items()))
        done = shell(script, tmp_path, **hub.environment(tmp_path / "hub"))
    assert (tmp_path / "codes0").read_text().split() == ["0", "0"], done.stderr
    here, there = (
        [[line[name] for name in ("loss", "perceptual", "adversarial", "discriminator")] for line in lines(log)]
        for log in sorted(tmp_path.glob("?.log.jsonl"))
    )
    assert here == there and all(here[-1])


def test_a_discriminator_that_is_not_finite_ends_the_run(mfkit, chain: Path, tmp_path: Path) -> None:
    """In the first step, after which the decoder's pictures are no numbers."""
    train = TRAIN.format("x").replace("--encoder tiny", f"--encoder {chain}/rae.safetensors")
    done = mfkit(f"{train} --discriminator encoder --discriminator-start 0 --learning-rate 1e35 --warmup 0")
    failed(done, 5, "not finite in step 1")
    assert (tmp_path / "x.diverged.safetensors").exists() and not (tmp_path / "x.safetensors").exists()


def test_the_decoder_is_moved_as_much_as_by_the_rest(mfkit, tmp_path: Path) -> None:
    """The adversarial gradient at the last layer is 0.75 times as large: by the gradients of the losses themselves."""
    from mfkit.training import autoencoder

    torch.manual_seed(0)
    last = torch.nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    x = torch.randn(7, 4, dtype=torch.float64)
    others, adversarial = (x @ last.T).square().mean(), -(x @ last.T).sin().sum()
    share = autoencoder.adaptive_share(others, adversarial, last)
    sizes = [torch.autograd.grad(value, last)[0].norm() for value in (others, share * adversarial)]
    assert torch.allclose(sizes[0], sizes[1])


def test_stopped_and_resumed_to_the_same_bytes(mfkit, tmp_path: Path) -> None:
    """With the discriminator, its optimiser and the vectors of its spectral norms."""
    command = TRAIN + ADVERSARY + " --save-every 1 --learning-rate 2e-3 --micro-batch 8"
    assert mfkit(command.format("whole")).code == 0
    last = "cut.checkpoint-0000005.safetensors"
    with stopped_once((tmp_path / last).exists, signal.SIGTERM):
        stopped = mfkit(command.format("cut"))
    assert stopped.code == 143, stopped.err
    (kept,) = checkpoints(tmp_path / "cut.safetensors")
    names = set(load_file(kept))
    assert any(name.startswith("adversary.optimizer.exp_avg.") for name in names)
    assert any(name.startswith("state.spectral.") for name in names)
    assert mfkit(command.format("cut")).code == 0
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    told = [
        [{name: value for name, value in line.items() if name != "samples_per_second"} for line in lines(path)]
        for path in (tmp_path / "whole.log.jsonl", tmp_path / "cut.log.jsonl")
    ]
    assert told[0] == told[1]


def test_latents_of_several_layers(mfkit, tmp_path: Path) -> None:
    """The mean of the normalised tokens, by hooks on the blocks; recorded in the file, so that encode needs no word."""
    assert mfkit(TRAIN.format("deep") + " --layers 1,3").code == 0
    rae = package.load(tmp_path / "deep.safetensors")
    taken: list[Tensor] = []
    for number in (1, 3):
        rae.encoder.blocks[number].register_forward_hook(lambda module, inputs, output: taken.append(output))
    images = torch.rand(4, 3, 32, 32)
    found = rae.features(images)
    expected = torch.stack([F.layer_norm(tokens[:, 1:], (32,), eps=1e-6) for tokens in taken]).mean(0)
    assert torch.allclose(found.flatten(2).mT, expected, atol=1e-5)
    assert mfkit("encode digits:heldout --rae deep.safetensors -o latents --layers 1,3").code == 0
    failed(mfkit("encode digits:heldout --rae deep.safetensors -o x --layers 2,3"), 2, "are of layers 1,3; train-rae")
    assert mfkit(TRAIN.format("last")).code == 0
    failed(mfkit("encode digits:heldout --rae last.safetensors -o x --layers 1"), 2, "are of its last layer alone")
    assert json.loads(mfkit("inspect deep.safetensors").out)["config"]["network"]["encoder_layers"] == [1, 3]
    done = mfkit(TRAIN.format("again").replace("tiny", "deep.safetensors"))  # an RAE's encoder has its own layers
    assert done.code == 0 and package.load(tmp_path / "again.safetensors").config.encoder_layers == [1, 3], done.err


def test_random_crops_are_what_slices_are() -> None:
    images = torch.randint(0, 256, (4, 3, 9, 9), dtype=torch.uint8)
    place = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.3, 0.8], [0.5, 0.25]])
    corners = [(0, 0), (3, 3), (1, 3), (2, 1)]
    found = random_crops(images, 6, place)
    for image, crop, (top, left) in zip(images, found, corners, strict=True):
        assert torch.equal(crop, image[:, top : top + 6, left : left + 6])
    assert random_crops(images, 9, place) is images


def test_a_decoder_of_random_crops(mfkit, tmp_path: Path) -> None:
    """It resumes to the same bytes; encoder and statistics are of the whole images, as without."""
    command = TRAIN + " --crop-scale 1.5 --save-every 1"
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((20, 32, 32, 3), np.uint8), arr_1=np.zeros(20, np.int64))
    of_one_size = command.format("x").replace("digits:heldout", "one.npz")
    failed(mfkit(of_one_size), 2, "one.npz holds images of one size", "--crop-scale 1")
    for name in ("whole", "cut"):
        with stopped_once((tmp_path / "cut.checkpoint-0000005.safetensors").exists, signal.SIGTERM):
            mfkit(command.format(name))
    assert checkpoints(tmp_path / "cut.safetensors") and mfkit(command.format("cut")).code == 0
    assert mfkit(TRAIN.format("middle")).code == 0
    one, other, middle = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "cut", "middle"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    moved = {name.partition(".")[0] for name in one if not torch.equal(one[name], middle[name])}
    assert moved == {"decoder"}


def test_a_new_decoder_for_the_latents_of_another(mfkit, chain: Path, tmp_path: Path) -> None:
    """Generators and latents of the old one fit it, and of what is not its kin they do not."""
    command = TRAIN.format("new").replace("--encoder tiny", f"--encoder {chain}/rae.safetensors")
    assert mfkit(f"{command} --keep-latents --perceptual encoder").code == 0
    old, new = (package.load(path) for path in (chain / "rae.safetensors", tmp_path / "new.safetensors"))
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(old.encode(images), new.encode(images))
    z = torch.randn(2, 32, 4, 4)
    assert not torch.allclose(old.decode(z), new.decode(z))
    for line in (f"sample {chain}/mft.safetensors -n 4 -o a.npz", f"decode {chain}/latents -o b.npz"):
        assert mfkit(f"{line} --rae new.safetensors").code == 0, line
    again = TRAIN.format("newer").replace("--encoder tiny", "--encoder new.safetensors")
    done = mfkit(f"{again} --keep-latents")
    assert done.code == 0, done.err
    assert mfkit(f"sample {chain}/mft.safetensors -n 4 -o c.npz --rae newer.safetensors").code == 0
    assert mfkit(command.replace("-o new.", "-o other.")).code == 0  # of its own statistics
    failed(mfkit(f"sample {chain}/mft.safetensors -n 4 -o d.npz --rae other.safetensors"), 3, "another autoencoder")
    failed(mfkit(TRAIN.format("x") + " --keep-latents"), 2, "--keep-latents is for the RAE that --encoder names")


def test_a_new_decoder_has_preset_and_patches_of_the_old(mfkit, chain: Path) -> None:
    """From a folder of images, which does not tell them; another preset can be asked for."""

    def settings(options: str) -> dict:
        done = mfkit(
            f"train-rae {chain}/samples --encoder {chain}/rae.safetensors -o x.safetensors --dry-run {options}"
        )
        assert done.code == 0, done.err
        return json.loads(done.out)["settings"]

    old = settings("--preset digits")
    for options in ("--keep-latents", ""):
        found = settings(options)
        assert found["perceptual"] == old["perceptual"] == "none" and found["patch"] == 8 and found["image_size"] == 32
        assert (found["optimizer"], found["learning_rate"]) == (old["optimizer"], old["learning_rate"])


def test_what_cannot_be(mfkit, tmp_path: Path) -> None:
    train = TRAIN.format("x")
    for option, code, words in (
        ("--layers 4", 2, "from 0 to 3"),
        ("--layers 2,1", 2, "in order"),
        ("--layers two", 2, "give numbers"),
        ("--perceptual gone.pth", 3, "neither a file of weights nor lpips, encoder, none"),
        ("--discriminator encoder --discriminator-start 0.9", 2, "not trained yet"),
        ("--discriminator gone.safetensors", 3, "no file of a timm model"),
        ("--discriminator no_such_model", 2, "neither a timm model nor a file"),
    ):
        failed(mfkit(f"{train} {option}"), code, words)
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.safetensors")
    pytest.importorskip("torchmetrics")
    failed(mfkit(f"{train} --perceptual vgg.safetensors"), 3, "vgg.safetensors does not fit")
