"""mfkit export: diffusers draws from the folder, without mfkit, what mfkit draws from the files."""

import json
import os
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any
from venv import EnvBuilder

import numpy as np
import pytest
import torch
from conftest import close, failed, run, several_as_script, shell
from diffusers import AutoencoderKL
from hub import serving
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import mfkit as package
from mfkit.artifacts.artifact import InputRecord, Record
from mfkit.autoencoders.rae import RAEFile
from mfkit.config.settings import SampleSettings
from mfkit.inference.sampler import sampler_of
from mfkit.interop.model_card import model_card
from mfkit.models.files import open_generator

LABELS = [3, 7, 0, 9]
USE = """
import importlib.util, json, pathlib, sys, torch
from diffusers import AutoModel, DiffusionPipeline
assert importlib.util.find_spec("mfkit") is None

def refused(labels=1, **arguments):
    try:
        pipeline(labels, **arguments)
    except ValueError as error:
        return str(error)

def opened(source="pipeline", **arguments):
    found = DiffusionPipeline.from_pretrained(source, trust_remote_code=True, **arguments)
    found.set_progress_bar_config(disable=True)
    return found

pipeline = opened()
noise = torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(1))
labels = [3, 7, 0, 9]
draw = lambda drawn, n=1: drawn(labels, num_inference_steps=n, latents=noise, output_type="pt").images
found = {f"steps {steps}": draw(pipeline, steps) for steps in (1, 2, 4)}
found["fp16"] = draw(opened(variant="fp16", dtype=torch.float16))
found["bf16"] = draw(opened(variant="bf16", dtype=torch.bfloat16))
found["by name"] = pipeline(["3", "7", 0, 9], latents=noise, output_type="pt").images
found["ids"] = pipeline.get_label_ids(["9", "0"])
seeded = lambda: pipeline(class_labels=5, generator=torch.Generator().manual_seed(3)).images[0]
found["picture"], found["again"] = (list(seeded().getdata()) for _ in range(2))
steps = []
def stop_there(pipeline, step, timestep, tensors):
    steps.append((step, tensors["latents"].shape))
    return {"latents": torch.zeros_like(tensors["latents"])}
called_back = pipeline(1, num_inference_steps=2, callback_on_step_end=stop_there, output_type="latent")
found["called back"] = called_back.images
found["steps called back"] = steps
try:
    DiffusionPipeline.from_pretrained("pipeline")
except ValueError as error:
    untrusted = str(error)
found["hub"] = draw(opened("someone/digits"))
found["refused"] = {
    "code": untrusted,
    "label": refused([11]), "name": refused("cat"), "steps": refused(num_inference_steps=0),
    "noise": refused(latents=torch.zeros(2, 32, 4, 4)), "guidance": refused(guidance_scale=4.0),
    "callback": refused(callback_on_step_end_tensor_inputs=["noise"]),
}
config = pathlib.Path("pipeline/transformer/config.json")
sizes = json.loads(config.read_text())
config.write_text(json.dumps({name: value for name, value in sizes.items() if name not in ("gated", "late_r")}))
alone = AutoModel.from_pretrained("pipeline/transformer", trust_remote_code=True)
times = torch.zeros(4), torch.ones(4)
with torch.no_grad():
    found["alone"] = alone(noise, *times, torch.tensor(labels))
    found["decoded alone"] = AutoModel.from_pretrained("pipeline/decoder", trust_remote_code=True).decode(noise)
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def place(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``pipeline`` is the chain's student, with a card that holds a measurement, and half precisions."""
    place = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        fid = run(f"fid {chain}/samples --reference digits:train --features {chain}/rae.safetensors", patch)
        (place / "fid.json").write_text(fid.out)
        done = run(f"export {chain}/mft.safetensors --fid fid.json --variants fp16,bf16 -o pipeline", patch)
    assert done.code == 0 and done.out == "pipeline\n", done.err
    return place


@pytest.fixture(scope="module")
def without_mfkit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs code in an environment that has what this one has, but mfkit."""
    home = tmp_path_factory.mktemp("bare")
    EnvBuilder(symlinks=True).create(home / "venv")

    def run_code(code: str, cwd: Path, **environment: str) -> str:
        # Of a folder on PYTHONPATH the .pth files are not read, by which an editable installation is found.
        known = {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HOME": str(home / "hub"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [home / "venv" / "bin" / "python", "-c", code], cwd=cwd, env={**os.environ, **known, **environment},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert "ignored" not in done.stderr and "not expected" not in done.stderr, done.stderr
        return done.stdout

    return run_code


@pytest.fixture(scope="module")
def found(place: Path, without_mfkit: Any) -> dict[str, Any]:
    with serving() as hub:
        hub.add("someone/digits", place / "pipeline")
        without_mfkit(USE, place, **hub.environment(place / "hub"))
    return torch.load(place / "found.pt", weights_only=False)  # which this test wrote


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_pipeline_draws_what_sample_draws(found: dict[str, Any], chain: Path, steps: int) -> None:
    noise = torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    student, rae = package.load(chain / "mft.safetensors"), package.load(chain / "rae.safetensors")
    with torch.no_grad():
        exact = rae.decode(sampler_of(student, SampleSettings(nfe=steps), time_shift=1.0)(noise, torch.tensor(LABELS)))
        average = student(noise, torch.zeros(4), torch.ones(4), torch.tensor(LABELS))
    close(found[f"steps {steps}"], exact.double())
    close(found["alone"], average.double())
    with torch.no_grad():
        close(found["decoded alone"], rae.decode(noise).double())


def test_half_precisions(found: dict[str, Any]) -> None:
    for variant, dtype, error in (("fp16", torch.float16, 5e-3), ("bf16", torch.bfloat16, 3e-2)):
        assert found[variant].dtype is dtype
        close(found[variant], found["steps 1"].double(), error)


def test_names_seeds_and_callbacks(found: dict[str, Any]) -> None:
    assert found["ids"] == [9, 0] and torch.equal(found["by name"], found["steps 1"])
    assert found["picture"] == found["again"]
    assert [step for step, _ in found["steps called back"]] == [0, 1] and not found["called back"].any()


def test_what_the_pipeline_refuses(found: dict[str, Any]) -> None:
    words = {
        "label": "0 to 10", "name": "0 classes are named 'cat'", "steps": "1 or more", "noise": "expected",
        "guidance": "one evaluation has no second velocity", "callback": "noise",
    }  # fmt: skip
    assert {name: word in found["refused"][name] for name, word in words.items()} == dict.fromkeys(words, True)


def test_from_the_hub_and_only_where_it_is_trusted(found: dict[str, Any]) -> None:
    assert torch.equal(found["hub"], found["steps 1"])
    assert "trust_remote_code=True" in found["refused"]["code"]


def test_mfkit_reads_the_folder_too(mfkit, place: Path, chain: Path, tmp_path: Path) -> None:
    """As the student and the decoder that it was made of; never its code."""
    shutil.copytree(place / "pipeline", tmp_path / "p")
    for code in (tmp_path / "p").rglob("*.py"):
        code.write_text("raise SystemExit('run')")
    assert mfkit("sample p -n 6 --seed 4 -o a.npz").code == 0
    assert mfkit(f"sample {chain}/mft.safetensors -n 6 --seed 4 -o b.npz").code == 0
    drawn, exact = (np.load(name)["arr_0"] for name in ("a.npz", "b.npz"))
    assert np.array_equal(drawn, exact)
    assert mfkit(f"decode {chain}/latents --rae p -o c.npz").code == 0
    more = f"bootstrap --init p --latents {chain}/latents --steps 1 --batch-size 8 -o s.safetensors"
    assert mfkit(more).code == 0
    assert "mfkit train-rae" in mfkit("inspect s.safetensors --script").out
    failed(mfkit("encode digits:heldout --rae p --preset digits -o x"), 2, "has a decoder alone")
    assert sum(value.numel() for value in package.load("p").state_dict().values()) > 1000


def test_a_model_on_the_hub_is_a_model(place: Path, chain: Path, tmp_path: Path) -> None:
    models = {"a": "hf://someone/digits@main", "x": "hf://someone/nothing", "b": f"{chain}/mft.safetensors"}
    fid = "fid digits:heldout --reference digits:train -n 20 --features hf://someone/raw/rae.safetensors"
    with serving() as hub:
        hub.repositories["someone/raw"] = {"rae.safetensors": (chain / "rae.safetensors").read_bytes()}
        hub.add("someone/digits", place / "pipeline")
        environment = hub.environment(tmp_path / "hub")
        script = several_as_script(
            tmp_path, *(f"sample {model} -n 6 --seed 4 -o {name}.npz" for name, model in models.items()), fid,
            "encode hf://someone/raw --rae hf://someone/raw/rae.safetensors --preset digits -o x",
        )  # fmt: skip
        done = shell(script, tmp_path, **environment)
    assert (tmp_path / "codes0").read_text().split() == ["0", "3", "0", "0", "2"], done.stderr
    assert "images of a dataset are hf://datasets/owner/name" in done.stderr
    assert not any(request.endswith(".py") for request in hub.requests)
    assert "hf://someone/nothing cannot be downloaded" in done.stderr
    assert np.array_equal(*(np.load(tmp_path / name)["arr_0"] for name in ("a.npz", "b.npz")))


def test_the_transformer_has_the_released_names(place: Path, chain: Path) -> None:
    held = load_file(place / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    plain = load_file(chain / "mft.safetensors")
    assert {name.removeprefix("network.") for name in held} == plain.keys()
    assert all(torch.equal(held[f"network.{name}"], value) for name, value in plain.items())


def test_the_card_says_how_it_was_made_and_measured(place: Path) -> None:
    card = (place / "pipeline" / "README.md").read_text()
    commands = [line for line in card.splitlines() if line.startswith("mfkit ")]
    names = ["train-rae", "encode", "train-teacher", "trajectories", "midtrain", "distill", "bootstrap"]
    assert [line.split()[1] for line in commands] == names
    measured = json.loads((place / "fid.json").read_text())
    assert f"Fréchet distance of {measured['features']}: {measured['frechet_distance']:.4g}" in card
    assert "## Licence\n\nNone is given." in card
    assert "digits:train" in card and "nfe 1" in card and "seed 0" in card and "images 40" in card


def test_a_push_and_what_the_card_tells_the_hub(chain: Path, place: Path, tmp_path: Path) -> None:
    export = f"export {chain}/mft.safetensors --fid {place}/fid.json --license mit --push"
    with serving() as hub:
        hub.repositories["someone/known"] = {}
        environment = hub.environment(tmp_path / "hub") | {"HF_TOKEN": "hf_mine"}
        script = several_as_script(
            tmp_path, f"{export} someone/digits --private -o pipeline", f"{export} someone/known --private -o known",
            f"{export} others/digits -o third", f"{export} gone/digits -o fourth",
        )  # fmt: skip
        done = shell(script, tmp_path, **environment)
        assert (tmp_path / "codes0").read_text().split() == ["0", "3", "3", "3"], done.stderr
        assert done.stdout == f"{hub.address}/someone/digits\n"
        assert hub.private == {"someone/digits"} and hub.tokens == {"hf_mine"}
        assert "someone/known is there already, for everyone to read" in done.stderr
        for name in ("others", "gone"):
            assert f"mfkit: error: {name}/digits cannot be written: " in done.stderr
        written = {
            str(path.relative_to(tmp_path / "pipeline")): path.read_bytes()
            for path in (tmp_path / "pipeline").rglob("*")
            if path.is_file()
        }
        assert hub.repositories["someone/digits"] == written and "pipeline.py" in written
    card = ModelCard.load(tmp_path / "pipeline" / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "diffusers")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    (result,) = card.data.eval_results
    measured = json.loads((place / "fid.json").read_text())
    assert result.metric_value == pytest.approx(measured["frechet_distance"])
    assert result.metric_args["nfe"] == 1 and result.dataset_name == "digits:train"
    assert "![Images of each class, in one evaluation](grid.png)" in card.text
    with Image.open(tmp_path / "pipeline" / "grid.png") as grid:
        assert grid.size == (8 * 66, 10 * 66)


def test_what_cannot_be_exported(mfkit, chain: Path, tmp_path: Path) -> None:
    failed(mfkit(f"export {chain}/teacher.safetensors -o x"), 3, "is a teacher file; expected: student")
    failed(mfkit(f"export {chain}/mft.safetensors --private -o x"), 2, "--private is of --push")
    failed(mfkit(f"export {chain}/mft.safetensors --variants fp8 -o x"), 2, "--variants fp8: known are fp16, bf16")
    failed(mfkit(f"export {chain}/mft.safetensors --fid {chain}/mft.log.jsonl -o x"), 3, "mft.log.jsonl is damaged")
    drawn = {"samples": {"model_digest": "sha256:other"}, "frechet_distance": 1, "reference": {}}
    (tmp_path / "fid.json").write_text(json.dumps(drawn))
    failed(mfkit(f"export {chain}/mft.safetensors --fid fid.json -o x"), 3, "fid.json is of samples of another model")
    failed(mfkit(f"export {chain}/mft.safetensors --fid gone.json -o x"), 3, "gone.json cannot be read")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    failed(mfkit(f"export {chain}/mft.safetensors -o taken"), 4, "taken exists")
    failed(mfkit(f"export {chain}/mft.safetensors -o taken --overwrite"), 4, "taken is not what mfkit export writes")
    assert (tmp_path / "taken" / "file").read_text() == "mine" and not (tmp_path / "x").exists()


def test_a_pipeline_with_a_vae(mfkit, tmp_path: Path, without_mfkit: Any) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, scaling_factor=0.2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    for command in (
        "encode digits:heldout --vae vae --preset digits -o latents",
        "train-mean-flow latents -o mf.safetensors --steps 2 --batch-size 8",
        "export mf.safetensors -o pipeline",
    ):
        done = mfkit(command)
        assert done.code == 0, f"{command}: {done.err}"
    without_mfkit(
        "import torch\nfrom diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained('pipeline', trust_remote_code=True)\n"
        "draw = lambda kind: pipeline(2, latents=torch.ones(1, 4, 8, 8), output_type=kind).images\n"
        "torch.save([draw('latent'), draw('pt')], 'drawn.pt')",
        tmp_path,
    )
    for model in ("mf.safetensors", "pipeline"):
        assert mfkit(f"sample {model} -n 3 -o {model[:2]}.npz").code == 0
    assert np.array_equal(*(np.load(tmp_path / name)["arr_0"] for name in ("mf.npz", "pi.npz")))
    latents, image = torch.load(tmp_path / "drawn.pt")
    with torch.no_grad():
        close(image, (vae.eval().decode(latents / 0.2).sample / 2 + 0.5).clamp(0, 1).double())


def test_the_card_names_what_the_model_is_made_of(chain: Path) -> None:
    student = open_generator(chain / "mft.safetensors")
    own, autoencoder = student.artifact.provenance, RAEFile.open(chain / "rae.safetensors").network_config
    plain = ModelCard(model_card(student, 1, autoencoder, None, None, "owner/model"))
    assert plain.data.get("base_model") is None and plain.data.get("datasets") is None
    imported = Record(
        command="mfkit import hf://me/teacher@main/t.pt -o t.safetensors",
        inputs={"images": InputRecord("hf:/datasets/me/pets:train", "images", "names-sha256:0")},
    )
    inputs = own.inputs | {"other": InputRecord("t.safetensors", "teacher", "sha256:t")}
    provenance = replace(own, inputs=inputs, history=own.history | {"sha256:t": imported})
    made = replace(student, artifact=replace(student.artifact, provenance=provenance))
    encoder = replace(autoencoder, encoder_name="vit_small_patch14_dinov2.lvd142m")
    card = ModelCard(model_card(made, 1, encoder, None, None, "owner/model"))
    assert card.data.base_model == ["me/teacher", "timm/vit_small_patch14_dinov2.lvd142m"]
    assert card.data.datasets == ["me/pets"]
