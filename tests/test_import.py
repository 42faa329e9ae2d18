"""Weights of the released layouts: what comes in computes what it was made to compute, and what does not fit is named.

They are compared with tests/reference.py; encoders, with what transformers computes, in tests/test_parity.py.
"""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import reference
import timm
import torch
from conftest import close, failed
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import save_for_hf

import mfkit as package
from mfkit.artifacts.artifact import open_artifact
from mfkit.config.settings import SampleSettings
from mfkit.data.latents import open_latents
from mfkit.flow.random import Draws
from mfkit.formats.released import decoder_config
from mfkit.inference.sampler import sampler_of

SIZES = dict(channels=12, side=4, num_classes=7, width=24, depth=3, heads=3, head_width=32, head_depth=2, head_heads=4)
HEADS = (SIZES["heads"], SIZES["head_heads"])


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    r, t = torch.rand(2, 5).sort(0).values
    return torch.randn(5, 12, 4, 4), r, t, torch.tensor([0, 3, 6, 7, 1])


def few_steps(student: torch.nn.Module, nfe: int, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return sampler_of(student, SampleSettings(nfe=nfe), time_shift=6.93)(noise, labels)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("width", [24, 32])
def test_a_teacher_computes_what_it_was_released_to(mfkit, tmp_path: Path, gated: bool, width: int) -> None:
    sizes = SIZES | {"width": width, "heads": width // 8}
    weights = reference.random_generator(**sizes, gated=gated, student=False)
    torch.save(weights, tmp_path / "stage2.pt")
    assert mfkit("import stage2.pt -o teacher.safetensors --preset imagenet256").code == 0
    artifact = open_artifact(tmp_path / "teacher.safetensors", kinds=("teacher",))
    assert (
        artifact.config["network"] == {"architecture": "dit-dh", **sizes, "gated": gated, "late_r": False}
        and artifact.config["preset"] == "imagenet256"
    )
    assert artifact.config["time_shift"] == 1  # 12 x 4 x 4 is below 4096
    z, _, t, y = inputs()
    close(package.load(artifact.path)(z, t, y), reference.generator(weights, z, t, y, None, sizes["heads"], 4))


def test_a_guiding_model_of_another_size(mfkit, tmp_path: Path) -> None:
    """RAE guides its DiT-DH-XL by a DiT-DH-S of few epochs, W = 1.42: w + 1.42 (v - w), by Euler steps."""
    smaller = SIZES | dict(width=16, depth=1, heads=2)
    strong, weak = (reference.random_generator(**sizes, student=False) for sizes in (SIZES, smaller))
    for name, weights in {"stage2": strong, "guide": weak}.items():
        torch.save(weights, tmp_path / f"{name}.pt")
        assert mfkit(f"import {name}.pt -o {name}.safetensors --preset imagenet256").code == 0
    solve = "trajectories --teacher stage2.safetensors -n 7 --solver euler --solver-steps 4"
    assert mfkit(f"{solve} --guide guide.safetensors --guidance 1.42 -o traj").code == 0
    dataset = open_latents("trajectories", "traj").dataset
    for index in range(7):
        found = dataset[index]
        state, label = found["states"][:1].float(), torch.tensor([int(found["label"])])
        for expected, t in zip(found["states"].float(), found["times"], strict=True):
            close(expected, state[0].double(), 1e-3)  # states are in float16
            v = reference.generator(strong, state, t[None], label, None, *HEADS)
            w = reference.generator(weak, state, t[None], label, None, smaller["heads"], HEADS[1])
            state = state - 0.25 * (w + 1.42 * (v - w))


def test_a_student_and_its_one_and_two_step_samples(mfkit, tmp_path: Path) -> None:
    """The published two steps jump from t = 1 to 0.5 to 0, whatever the shift of the training's times."""
    weights = reference.random_generator(**SIZES, student=True)
    other = {name: value + 1 for name, value in weights.items()}
    torch.save({"ema": weights, "model": other, "opt": {"state": {}}, "train_steps": 7}, tmp_path / "mf.pt")
    assert mfkit("import mf.pt -o student.safetensors --time-shift 6.93").code == 0
    assert open_artifact(tmp_path / "student.safetensors").config["time_shift"] == 6.93
    network = package.load(tmp_path / "student.safetensors")
    z, r, t, y = inputs()
    u = lambda z, r, t: reference.generator(weights, z, t, y, r, *HEADS)  # noqa: E731
    close(network(z, r, t, y), u(z, r, t))
    one, half, nought = torch.ones(5), torch.full((5,), 0.5), torch.zeros(5)
    close(few_steps(network, 1, z, y), z - u(z, nought, one))
    middle = z - 0.5 * u(z, half, one)
    close(few_steps(network, 2, z, y), middle - 0.5 * u(middle, nought, half))


def test_which_weights_of_a_checkpoint(mfkit, tmp_path: Path) -> None:
    one = reference.random_generator(**SIZES, student=False)
    two = {f"_orig_mod.module.{name}": value + 1 for name, value in one.items()}
    torch.save({"ema": one, "model": two}, tmp_path / "both.pt")
    save_file(one, tmp_path / "plain.safetensors")
    assert mfkit("import both.pt -o ema.safetensors").code == 0
    assert mfkit("import both.pt -o model.safetensors --weights model").code == 0
    assert mfkit("import plain.safetensors -o plain2.safetensors").code == 0
    ema, model, plain = (package.load(tmp_path / f"{name}.safetensors") for name in ("ema", "model", "plain2"))
    name = "final_layer.linear.bias"
    assert torch.equal(ema.state_dict()[name], one[name]) and torch.equal(plain.state_dict()[name], one[name])
    assert torch.equal(model.state_dict()[name], two[f"_orig_mod.module.{name}"])
    failed(mfkit("import plain.safetensors -o x.safetensors --weights ema"), 3, "no `ema` weights, but plain weights")


def test_what_does_not_fit_is_named(mfkit, tmp_path: Path) -> None:
    weights = reference.random_generator(**SIZES, student=True)
    torch.save(weights | {"blocks.0.attn.q_norm.weight": torch.ones(8)}, tmp_path / "a.pt")
    failed(mfkit("import a.pt -o x.safetensors"), 3, "a.pt", "unexpected blocks.0.attn.q_norm.weight")
    torch.save({k: v for k, v in weights.items() if k != "r_embedder.mlp.2.bias"}, tmp_path / "b.pt")
    failed(mfkit("import b.pt -o x.safetensors"), 3, "b.pt", "missing r_embedder.mlp.2.bias")
    torch.save({k: v for k, v in weights.items() if "rope" not in k}, tmp_path / "c.pt")
    failed(mfkit("import c.pt -o x.safetensors"), 3, "c.pt lacks enc_feat_rope.freqs_cos")
    torch.save({"mean": torch.zeros(3), "var": torch.ones(3)}, tmp_path / "stat.pt")
    failed(mfkit("import stat.pt -o x.safetensors"), 3, "latent statistics", "--stats")
    torch.save(weights | {"pos_embed": torch.ones(3)}, tmp_path / "rank.pt")
    failed(mfkit("import rank.pt -o x.safetensors"), 3, "rank.pt")
    torch.save({"layer.weight": torch.ones(3)}, tmp_path / "d.pt")
    failed(mfkit("import d.pt -o x.safetensors"), 3, "neither a DiT-DH generator", "layer.weight")
    torch.save([1, 2], tmp_path / "e.pt")
    failed(mfkit("import e.pt -o x.safetensors"), 3, "e.pt holds a list")
    (tmp_path / "f.pt").write_bytes(b"not weights")
    failed(mfkit("import f.pt -o x.safetensors"), 3, "f.pt")
    failed(mfkit("import nowhere.pt -o x.safetensors"), 3, "nowhere.pt does not exist")
    failed(mfkit("import b.pt -o x.safetensors --stats stat.pt"), 2, "--stats: of no use for a student")
    assert not (tmp_path / "x.safetensors").exists()


class _Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("run"),))


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_is_run(mfkit, tmp_path: Path, legacy: bool) -> None:
    torch.save({"ema": _Bomb()}, tmp_path / "bomb.pt", _use_new_zipfile_serialization=not legacy)
    failed(mfkit("import bomb.pt -o x.safetensors"), 3, "not a file of tensors alone", "nothing of it is run")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Bomb()))
    failed(mfkit("import plain.pt -o x.safetensors"), 3, "plain.pt")
    assert not (tmp_path / "run").exists()


def test_an_rae_from_its_released_parts(mfkit, tmp_path: Path) -> None:
    weights = reference.random_decoder(channels=192, side=2, patch=8, width=48, depth=2, hidden=80)
    torch.save(weights, tmp_path / "decoder.pt")
    stats = {"mean": torch.randn(192, 2, 2), "var": torch.rand(192, 2, 2) + 0.1}
    torch.save(stats, tmp_path / "stat.pt")
    torch.manual_seed(3)
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    torch.nn.init.normal_(encoder.norm.weight)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    command = "import decoder.pt --stats stat.pt --encoder vit_tiny_patch16_224 --encoder-weights encoder.pth"
    failed(mfkit(f"{command} -o rae.safetensors"), 3, "width 48", "--decoder-heads")
    done = mfkit(f"{command} -o rae.safetensors --decoder-heads 4")
    assert done.code == 0, done.err
    rae = package.load(tmp_path / "rae.safetensors")

    latents = torch.randn(3, 192, 2, 2)
    tokens = (latents.double() * (stats["var"].double() + 1e-5).sqrt() + stats["mean"]).flatten(2).mT
    pixels = reference.decoder(weights, tokens, 4, 8) * 0.5 + 0.5  # this encoder's mean and std
    close(rae.decode(latents), pixels.clamp(0, 1))

    images = torch.rand(3, 3, 16, 16)
    resized = torch.nn.functional.interpolate(images, size=(32, 32), mode="bicubic", align_corners=False)
    encoder.norm = torch.nn.LayerNorm(192, eps=1e-6, elementwise_affine=False)
    features = encoder.forward_features((resized - 0.5) / 0.5)[:, 1:].mT.reshape(3, 192, 2, 2)
    close(rae.encode(images), ((features - stats["mean"]) / (stats["var"] + 1e-5).sqrt()).double())

    failed(mfkit("import decoder.pt -o x.safetensors"), 2, "decoder.pt", "--stats", "--encoder")
    done = mfkit("import decoder.pt --stats stat.pt --encoder rae.safetensors -o again.safetensors --decoder-heads 4")
    assert done.code == 0, done.err
    assert torch.equal(package.load(tmp_path / "again.safetensors").encode(images), rae.encode(images))
    for name, bad in {
        "wide": torch.ones(2), "negative": -torch.ones(192, 2, 2), "endless": torch.full((192, 2, 2), torch.inf)
    }.items():  # fmt: skip
        torch.save(stats | {"var": bad}, tmp_path / f"{name}.pt")
        wrong = command.replace("stat.pt", f"{name}.pt")
        failed(mfkit(f"{wrong} -o x.safetensors --decoder-heads 4"), 3, f"{name}.pt: var is")
    small = reference.random_decoder(channels=64, side=2, patch=8, width=48, depth=1, hidden=80)
    torch.save(small, tmp_path / "decoder.pt")
    failed(mfkit(f"{command} -o x.safetensors --decoder-heads 4"), 3, "64 x 2 x 2", "192 x 2 x 2")


@pytest.mark.parametrize(
    ("architecture", "patch", "mean", "std"),
    [
        ("vit_small_patch14_reg4_dinov2", 14, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ("vit_large_patch14_reg4_dinov2", 14, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ("vit_base_patch16_224", 16, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),  # MAE's
        ("vit_base_patch16_siglip_256", 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # SigLIP 2's
    ],
)
def test_decoders_of_each_encoder_that_they_are_released_for(
    mfkit, tmp_path: Path, architecture: str, patch: int, mean: tuple, std: tuple
) -> None:
    """Small ones of the same layout, with the encoder as timm's hub holds it."""
    torch.manual_seed(0)
    arguments = dict(embed_dim=64, depth=2, num_heads=2)
    network = timm.create_model(architecture, num_classes=0, img_size=2 * patch, **arguments).eval()
    for value in network.parameters():
        value.data += 0.05 * torch.randn_like(value)
    network.pretrained_cfg |= {"mean": mean, "std": std}
    save_for_hf(network, tmp_path / "encoder", model_config={"model_args": arguments}, safe_serialization=True)
    weights = reference.random_decoder(channels=64, side=2, patch=16, width=48, depth=2, hidden=80)
    torch.save(weights, tmp_path / "decoder.pt")
    stats = {"mean": torch.randn(64, 2, 2), "var": torch.rand(64, 2, 2) + 0.1}
    torch.save(stats, tmp_path / "stat.pt")
    command = "import decoder.pt --stats stat.pt --encoder encoder/model.safetensors -o rae.safetensors"
    done = mfkit(f"{command} --decoder-heads 4")
    assert done.code == 0, done.err
    rae = package.load(tmp_path / "rae.safetensors")
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    latents = torch.randn(3, 64, 2, 2)
    tokens = (latents.double() * (stats["var"].double() + 1e-5).sqrt() + stats["mean"]).flatten(2).mT
    close(rae.decode(latents), (reference.decoder(weights, tokens, 4, 16) * scale + shift).clamp(0, 1))
    images = torch.rand(3, 3, 32, 32)
    resized = torch.nn.functional.interpolate(images, size=(2 * patch, 2 * patch), mode="bicubic")
    network.norm = torch.nn.LayerNorm(64, eps=1e-6, elementwise_affine=False)
    with torch.no_grad():
        taken = network.forward_features(((resized if patch != 16 else images) - shift) / scale)
    features = taken[:, network.num_prefix_tokens :].mT.reshape(3, 64, 2, 2)
    close(rae.encode(images), ((features - stats["mean"]) / (stats["var"] + 1e-5).sqrt()).double())


def test_weights_of_another_encoder_are_refused(mfkit, tmp_path: Path) -> None:
    encoder = timm.create_model("vit_tiny_patch16_224", init_values=0.1)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    command = "train-rae digits:heldout --encoder {} --encoder-weights encoder.safetensors --encoder-size {} "
    command += "--preset digits -o rae.safetensors"
    done = mfkit(command.format("vit_tiny_patch16_224", 32))
    failed(done, 3, "encoder.safetensors does not fit its network", "unexpected blocks.0.ls1.gamma")
    failed(mfkit(command.format("vit_tiny_patch16_224", 60)), 2, "patches of 16 pixels, which do not divide 60")
    failed(mfkit(command.format("resnet18", 32)), 2, "resnet18 is no vision transformer")
    save_file({"pos_embed": torch.ones(1, 7, 192)}, tmp_path / "encoder.safetensors")
    failed(mfkit(command.format("vit_tiny_patch16_224", 32)), 3, "encoder.safetensors does not fit")
    failed(mfkit(command.format("tiny", 32)), 2, "--encoder-weights is for the models of a library")


def test_positions_are_stored_only_where_diffusers_makes_others(mfkit, tmp_path: Path) -> None:
    """At 16 x 16 they are the same, so that the decoder loads into diffusers' as it is."""
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=256)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    torch.save({"mean": torch.zeros(192, 1, 1), "var": torch.ones(192, 1, 1)}, tmp_path / "stat.pt")
    for side, stored in ((16, False), (4, True)):
        weights = reference.random_decoder(channels=192, side=side, patch=2, width=48, depth=1, hidden=80)
        torch.save(weights, tmp_path / "decoder.pt")
        command = "import decoder.pt --stats stat.pt --encoder vit_tiny_patch16_224 --decoder-heads 4 --overwrite"
        done = mfkit(f"{command} --encoder-weights encoder.safetensors -o rae.safetensors")
        assert done.code == 0, done.err
        rae = package.load(tmp_path / "rae.safetensors")
        assert ("decoder_pos_embed" in rae.decoder.state_dict()) == stored
        latents = torch.randn(1, 192, side, side)
        pixels = reference.decoder(weights, latents.double().flatten(2).mT * (1 + 1e-5) ** 0.5, 4, 2) * 0.5 + 0.5
        close(rae.decode(latents), pixels.clamp(0, 1))


def test_published_decoders_need_no_heads() -> None:
    for width, heads in ((768, 12), (1024, 16), (1152, 16)):
        weights = reference.random_decoder(channels=8, side=1, patch=2, width=width, depth=1, hidden=8)
        assert decoder_config(weights, None, "decoder.pt")["decoder_heads"] == heads


def test_a_generator_with_an_rae_of_other_latents_is_refused(mfkit, chain: Path, tmp_path: Path) -> None:
    torch.save(reference.random_generator(**SIZES, student=True), tmp_path / "odd.pt")
    torch.save(reference.random_generator(**SIZES | {"channels": 32}, student=True), tmp_path / "fits.pt")
    words = ("makes latents of 12 x 4 x 4", "rae.safetensors has 32 x 4 x 4")
    failed(mfkit(f"import odd.pt --rae {chain}/rae.safetensors -o x.safetensors"), 3, *words)
    assert mfkit("import odd.pt -o odd.safetensors").code == 0
    failed(mfkit(f"sample odd.safetensors --rae {chain}/rae.safetensors -n 1 -o x"), 3, *words)
    failed(mfkit(f"export odd.safetensors --rae {chain}/rae.safetensors -o x"), 3, *words)
    assert mfkit(f"import fits.pt --rae {chain}/rae.safetensors -o fits.safetensors").code == 0
    assert mfkit("sample fits.safetensors -n 1 -o drawn.npz").code == 0  # by the recorded RAE


def test_a_source_on_the_hub(mfkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's own cache, off line: nothing is fetched that was not named."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--weights"
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "sub").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    torch.save(reference.random_generator(**SIZES, student=True), snapshot / "sub" / "model.pt")
    (repository / "refs" / "v2").write_text("1" * 40)
    other = repository / "snapshots" / ("1" * 40)
    other.mkdir()
    torch.save(reference.random_generator(**SIZES, student=False), other / "model.pt")
    done = mfkit("import hf://someone/weights/sub/model.pt -o student.safetensors")
    assert done.code == 0, done.err
    assert open_artifact(tmp_path / "student.safetensors").kind == "student"
    assert mfkit("import hf://someone/weights@v2/model.pt -o teacher.safetensors").code == 0
    assert open_artifact(tmp_path / "teacher.safetensors").kind == "teacher"
    failed(mfkit("import hf://someone/weights/a/../../x.pt -o x.safetensors"), 3, "cannot be downloaded")
    failed(mfkit("import hf://someone/weights/other.pt -o x.safetensors"), 3, "hf://someone/weights/other.pt")
    failed(mfkit("import hf://someone -o x.safetensors"), 2, "give hf://owner/repo/path")


def test_latents_of_a_vae_run_through_the_same_commands(mfkit, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, sample_size=32,
        scaling_factor=0.2, shift_factor=0.1,
    ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    for command in (
        "encode digits:heldout --vae vae --preset digits -o latents",
        "train-teacher latents -o teacher.safetensors --steps 2 --batch-size 8",
        "train-mean-flow latents -o mf.safetensors --steps 2 --batch-size 8 --sample-every 2",
        "sample mf.safetensors -n 4 -o samples.npz",
        "flops mf.safetensors",
    ):
        done = mfkit(command)
        assert done.code == 0, f"{command}: {done.err}"
    from mfkit.data.images import open_images
    from mfkit.data.latents import open_latents

    data, source = open_latents("latents", str(tmp_path / "latents")), open_images("digits:heldout", 32)
    assert data.shape == (4, 8, 8)
    image = source[5]["image"][None].float() / 127.5 - 1
    with torch.no_grad():
        exact = (vae.encode(image).latent_dist.mean - 0.1) * 0.2
        assert torch.allclose(data.dataset[5]["latent"].float(), exact[0], rtol=2e-3, atol=2e-3)
        network = package.load(tmp_path / "mf.safetensors")
        noise = Draws(0, "sample", range(4)).normal("noise", (4, 8, 8))
        latents = few_steps(network, 1, noise, torch.arange(4))
        pixels = (vae.decode(latents / 0.2 + 0.1).sample / 2 + 0.5).clamp(0, 1).mul(255)
    import numpy as np

    drawn = np.load(tmp_path / "samples.npz")["arr_0"].astype(np.float32)
    assert np.abs(drawn.transpose(0, 3, 1, 2) - pixels.numpy()).max() <= 1
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, value in load_file(file).items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[name] = value
    assert any(".query." in name for name in renamed)
    save_file(renamed, file)  # as early versions of diffusers wrote it
    assert mfkit("encode digits:heldout --vae vae --preset digits -o renamed").code == 0
    failed(mfkit("encode digits --vae vae --preset digits -o x --layers 1"), 2, "--layers is for an RAE; vae is a vae")
    assert (tmp_path / "renamed/00000.tar").read_bytes() == (tmp_path / "latents/00000.tar").read_bytes()
    failed(mfkit("encode digits --vae latents --preset digits -o y"), 3, "latents holds no diffusers model")
    failed(mfkit("encode digits --vae nowhere --preset digits -o y"), 3, "nowhere", "owner/repo")
    failed(mfkit("encode digits --vae vae -o y"), 2, "vae names no preset")
    failed(mfkit("encode digits --vae vae --preset digits --image-size 30 -o y"), 3, "4 times", "30 pixels")
    failed(mfkit("encode digits -o y"), 2, "pass --rae or --vae")
    shutil.rmtree(tmp_path / "vae")
    failed(mfkit("sample mf.safetensors -n 1 -o z"), 3, "vae", "is gone")
    assert json.loads((tmp_path / "latents" / "index.json").read_text())["provenance"]["inputs"]["rae"]["kind"] == "vae"
