"""The command line: help, standard output, pipes, and one line for every error."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, failed, forked, shell
from PIL import Image
from safetensors.torch import load_file, save_file

from mfkit.artifacts.safetensors_files import read_header
from mfkit.commands.main import COMMANDS, subcommand
from mfkit.config.presets import PRESETS
from mfkit.data.codecs import array_bytes
from mfkit.data.writer import write_shard


@pytest.mark.parametrize("name", COMMANDS)
def test_help_at_80_columns(name: str, mfkit, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = mfkit(f"{name} --help")
    assert result.code == 0 and max(map(len, result.out.splitlines())) <= 80 and "bool" not in result.out
    assert f"mfkit {name}" in result.out.partition("Examples:")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described(name: str) -> None:
    for parameter in subcommand(name).build(name).params:
        assert parameter.help, f"{name} {parameter.name}"


def test_the_list_of_commands_at_80_columns(mfkit, monkeypatch) -> None:
    """No summary is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = [" ".join(line.split()) for line in mfkit("--help").out.splitlines()]
    for name in COMMANDS:
        assert f"{name} {subcommand(name).summary}" in lines and len(subcommand(name).summary) <= 45
    assert "Did you mean 'sample'?" in mfkit("sampel").err


@pytest.mark.parametrize("command", ["train-rae", "encode", "train-teacher", "trajectories", "midtrain", "distill"])
def test_help_shows_what_each_preset_sets(command: str, mfkit) -> None:
    text = " ".join(mfkit(f"{command} --help").out.split())
    for preset, values in ((name, preset.commands.get(command, {})) for name, preset in PRESETS.items()):
        for name, value in values.items():
            several = value if isinstance(value, tuple) else (value,)
            shown = " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in several)
            described = text.partition(f" --{name.replace('_', '-')} ")[2].partition(" --")[0]
            own = rf"\b{preset}\b[^;\]]*: {re.escape(shown)}[;\]]"
            assert re.search(own, described) or f"[default: {shown}" in described, (preset, name)


def test_version_names_the_libraries(mfkit) -> None:
    versions = json.loads(mfkit("--version").out)
    assert versions["torch"] == torch.__version__.partition("+")[0] and {"mfkit", "timm", "diffusers"} <= set(versions)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("encode digits --rae gone.safetensors -o x", 3, ["gone.safetensors does not exist"]),
        ("encode nothing/ --rae {}/rae.safetensors -o x", 3, ["nothing/ does not exist"]),
        ("encode digits --rae {}/teacher.safetensors -o x", 3, ["is a teacher file; expected: rae"]),
        ("train-teacher {}/traj -o x.safetensors", 3, ["traj is a trajectories file; expected: latents"]),
        ("train-teacher {}/rae.safetensors -o x.safetensors", 3, ["is a rae file; expected: a folder or shards"]),
        ("bootstrap --init {}/teacher.safetensors -o x.safetensors", 3, ["is a teacher file; expected: student"]),
        ("distill --teacher {}/mft.safetensors -o x.safetensors", 3, ["is a student file; expected: teacher"]),
        ("sample {}/rae.safetensors -n 1 -o x", 3, ["is a rae file; expected: teacher or student"]),
        ("sample {}/mft.safetensors -n 1 -o x --labels 0,12", 2, ["class 12 is outside 0 to 9"]),
        ("sample {}/mft.safetensors -n 1 -o x --labels many", 2, ["give equal, random, or class indices"]),
        (
            "sample {}/teacher.safetensors -n 1 -o x --solver heun --nfe 4",
            2,
            ["--nfe 4: no number of steps of heun takes it; the nearest are [3, 5]"],
        ),
        ("sample {}/mft.safetensors -n 1", 2, ["pass -o, --grid, or both"]),
        ("sample {}/mft.safetensors -n 1 -o {}/samples", 4, ["exists; pass --overwrite"]),
        ("fid digits --reference digits --features what", 2, ["what: neither a timm model"]),
        ("fid digits:heldout --reference digits -n 400 --features {}/rae.safetensors", 2, ["there are only 297"]),
        ("train-rae digits --encoder no_such_model -o x.safetensors", 2, ["neither a timm model"]),
        ("train-rae - --encoder tiny -o x.safetensors", 3, ["-"]),
        (
            "train-teacher {}/latents -o x.safetensors --log-with papyrus",
            2,
            ["accelerate knows", "tensorboard", "wandb"],
        ),
        ("train-teacher {}/latents -o x.safetensors --batch-size 10 --micro-batch 4", 2, ["does not divide"]),
        ("plot gone.jsonl -o x.png", 3, ["gone.jsonl does not exist"]),
        ("inspect {}/rae.log.jsonl", 3, ["rae.log.jsonl is not a safetensors file"]),
        ("flops --rae {}/rae.safetensors", 2, ["pass a MODEL"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(command: str, code: int, words: list[str], mfkit, chain, tmp_path):
    failed(mfkit(command.format(chain, chain)), code, *words)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_does_not_decode_leaves_no_folder(mfkit, chain: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    failed(mfkit(f"encode images --rae {chain}/rae.safetensors -o latents"), 3, "images/bad.png does not decode")
    assert not (tmp_path / "latents").exists()


def test_debug_shows_the_traceback(mfkit, monkeypatch) -> None:
    monkeypatch.setenv("MFKIT_DEBUG", "")
    result = mfkit("inspect nothing --debug")
    assert "Traceback" in result.err and result.err.endswith("mfkit: error: nothing does not exist\n")


def test_latents_of_another_rae_are_refused(mfkit, chain: Path, tmp_path: Path) -> None:
    entries = read_header(chain / "rae.safetensors").metadata
    tensors = load_file(chain / "rae.safetensors")
    tensors["latent_mean"] += 1
    save_file(tensors, tmp_path / "rae.safetensors", metadata=entries)
    assert mfkit("encode digits:heldout --rae rae.safetensors -o other").code == 0
    failed(
        mfkit(f"distill --teacher {chain}/teacher.safetensors --latents other -o x.safetensors"),
        3, "come from two different autoencoders",
    )  # fmt: skip
    failed(mfkit(f"sample {chain}/mft.safetensors -n 1 -o x --rae rae.safetensors"), 3, "another autoencoder")


def foreign(path: Path, shape: tuple[int, ...], label: int) -> None:
    """A shard of latents as another tool might write it: no index, no description."""
    latent = array_bytes(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    write_shard(path, [{"__key__": f"s{i}", "latent.npy": latent, "cls": str(label).encode()} for i in range(40)])


def test_latents_of_another_shape_are_refused(mfkit, chain: Path, tmp_path: Path) -> None:
    foreign(tmp_path / "foreign.tar", (8, 4, 4), 1)
    command = f"distill --teacher {chain}/teacher.safetensors --latents foreign.tar -o x.safetensors"
    failed(mfkit(command), 3, "foreign.tar holds latents (8, 4, 4)")


def test_a_students_two_steps_meet_at_half_time(mfkit, chain: Path, tmp_path: Path) -> None:
    """As published; with --time-shift 4 they meet where that shift puts 0.5: at 0.8."""
    import mfkit as package
    from mfkit.flow.random import Draws

    student, rae = package.load(chain / "mft.safetensors"), package.load(chain / "rae.safetensors")
    z = Draws(0, "sample", range(10)).normal("noise", (32, 4, 4))
    y, nought, one = torch.arange(10), torch.zeros(10), torch.ones(10)
    for flag, middle in (("", 0.5), ("--time-shift 4", 0.8)):
        assert mfkit(f"sample {chain}/mft.safetensors -n 10 --nfe 2 -o x.npz --overwrite {flag}").code == 0
        with torch.no_grad():
            halfway = z - (1 - middle) * student(z, one * middle, one, y)
            x = halfway - middle * student(halfway, nought, one * middle, y)
            pixels = 255 * rae.decode(x).permute(0, 2, 3, 1).numpy()
        assert np.abs(np.load(tmp_path / "x.npz")["arr_0"].astype(float) - pixels).max() <= 0.51


def test_foreign_latents_need_only_a_preset_and_their_number_of_classes(mfkit, tmp_path: Path) -> None:
    foreign(tmp_path / "foreign.tar", (8, 4, 4), 4)
    command = "train-teacher foreign.tar -o t.safetensors --steps 2 --batch-size 8"
    failed(mfkit(command + " --classes 5"), 2, "foreign.tar names no preset; pass --preset digits|small|imagenet256")
    command += " --preset digits"
    failed(mfkit(command), 2, "pass --classes")
    failed(mfkit(command + " --classes 4"), 3, "foreign.tar: sample s", "label 4 is outside the 4 classes")
    assert mfkit(command + " --classes 5").code == 0


def test_moments_of_latents_without_classes(mfkit, chain: Path, tmp_path: Path) -> None:
    latent = array_bytes(np.random.default_rng(0).normal(size=(32, 4, 4)).astype(np.float32))
    write_shard(tmp_path / "plain.tar", [{"__key__": f"s{i}", "latent.npy": latent} for i in range(40)])
    command = f"bootstrap --init {chain}/cmt.safetensors --latents plain.tar --objective frechet"
    done = mfkit(f"{command} --moment-samples 20 --batch-size 4 --steps 1 -o f.safetensors")
    assert done.code == 0, done.err


def test_standard_output_holds_the_result_alone(mfkit, chain: Path, tmp_path: Path) -> None:
    result = mfkit(f"train-teacher {chain}/latents -o t.safetensors --steps 1 --batch-size 4")
    assert result == Result(0, "t.safetensors\n", "")


def test_dry_run_says_everything_and_does_nothing(mfkit, chain: Path, tmp_path: Path) -> None:
    result = mfkit(f"train-teacher {chain}/latents -o t.safetensors --learning-rate 0.5 --dry-run")
    plan = json.loads(result.out)
    assert plan["settings"]["learning_rate"] == 0.5 and plan["settings"]["ema"] == [0.999]
    network = load_file(chain / "teacher.safetensors")
    fixed = ("pos_embed", "t_embedder.W")
    trained = {name: value for name, value in network.items() if "rope" not in name and name not in fixed}
    assert plan["parameters"] == sum(value.numel() for value in trained.values())
    assert plan["latent"] == list(network["x_embedder.proj.weight"].shape[1:2]) + [4, 4]
    assert list(tmp_path.iterdir()) == []


def test_presets_are_overridden_by_flags_and_inherited(mfkit, chain: Path) -> None:
    inherited = json.loads(mfkit(f"distill --teacher {chain}/teacher.safetensors -o x.safetensors --dry-run").out)
    assert inherited["settings"]["batch_size"] == 64
    named = f"distill --teacher {chain}/teacher.safetensors -o x.safetensors --preset imagenet256 --ema 0.5 --dry-run"
    settings = json.loads(mfkit(named).out)["settings"]
    assert settings["steps"] == 180_000 and settings["ema"] == [0.5]
    for typed in ("--ema 0.5,0.9", "--ema=0.5,0.9", "--ema 0.5 --ema 0.9"):
        several = json.loads(mfkit(named.replace("--ema 0.5", typed)).out)["settings"]
        assert several["ema"] == [0.5, 0.9]


def test_distill_finds_latents_start_and_name(mfkit, chain: Path, tmp_path: Path) -> None:
    for name in ("latents", "teacher.safetensors", "rae.safetensors"):
        (tmp_path / name).symlink_to(chain / name)
    assert mfkit("distill --teacher teacher.safetensors --steps 1 --batch-size 4").out == "mfd.safetensors\n"
    assert mfkit("sample mfd.safetensors -n 3 -o images").code == 0


def test_log_lines_and_their_plot(mfkit, chain: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (chain / "mfd.log.jsonl").read_text().splitlines()]
    names = {"step", "loss", "mse", "grad_norm", "learning_rate", "samples_per_second"}
    assert [line["step"] for line in lines] == [2, 4] and set(lines[0]) == names
    assert mfkit(f"plot {chain}/mfd.log.jsonl {chain}/mft.log.jsonl -o curves.png").out == "curves.png\n"
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_inspect_says_what_a_file_is(mfkit, chain: Path, tmp_path: Path) -> None:
    def script_of(path: Path) -> list[str]:
        return mfkit(f"inspect {path} --script").out.splitlines()[3:]

    student = json.loads(mfkit(f"inspect {chain}/mfd.safetensors").out)
    assert student["kind"] == "student" and student["provenance"]["inputs"]["teacher"]["path"] == "teacher.safetensors"
    latents = json.loads(mfkit(f"inspect {chain}/latents").out)
    assert latents["kind"] == "latents" and latents["samples"] == 1500 and latents["config"]["dtype"] == "float16"
    assert list(latents["shards"].values()) == [400, 400, 400, 300]
    assert mfkit(f"decode {chain}/latents -o x.npz").code == 0
    packed = json.loads(mfkit("inspect x.npz").out)
    assert packed["arrays"] == ["arr_0", "arr_1", "conditions", "provenance"]
    assert packed["conditions"]["decoded"] == "latents" and packed["provenance"]["inputs"]["latents"]["path"]
    chain_of = mfkit("inspect x.npz --script").out.splitlines()
    assert chain_of[-3:] == [*script_of(chain / "latents"), f"mfkit decode {chain}/latents -o x.npz"]
    assert mfkit(f"encode x.npz --rae {chain}/rae.safetensors --preset digits -o again").code == 0
    assert script_of(tmp_path / "again")[:-1] == chain_of[3:]
    failed(mfkit("inspect x.npz --tensors"), 2, "no tensors")
    tensors = json.loads(mfkit(f"inspect {chain}/teacher.safetensors --tensors").out)["tensors"]
    assert tensors["t_embedder.W"] == ["F32", [256]]
    chain_of = mfkit(f"inspect {chain}/mfd.safetensors --script").out.splitlines()
    assert [line.split()[1] for line in chain_of if line.startswith("mfkit")] == [
        "train-rae", "encode", "train-teacher", "trajectories", "midtrain", "distill"
    ]  # fmt: skip


def pixels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.rglob("*.png"), key=lambda path: path.stem)
    return {path.stem: np.asarray(Image.open(path)) for path in files}


def test_images_are_the_same_in_every_form(mfkit, chain: Path, tmp_path: Path) -> None:
    """PNG folder, shards and .npz hold the same images and labels, and each is an IMAGES argument again."""
    base = f"sample {chain}/mft.safetensors -n 12 --seed 3"
    for output in ("png", "tar --format tar", "x.npz --batch-size 5"):
        assert mfkit(f"{base} -o {output}").code == 0
    files = pixels(tmp_path / "png")
    assert sorted(path.name for path in (tmp_path / "png").iterdir() if path.is_dir()) == [str(i) for i in range(10)]
    archive = np.load(tmp_path / "x.npz")
    assert archive["arr_0"].shape == (12, 32, 32, 3) and archive["arr_0"].dtype == np.uint8
    assert archive["arr_1"].tolist() == [i % 10 for i in range(12)]
    for row, image in zip(archive["arr_0"], files.values(), strict=True):
        assert np.array_equal(row, image)
    for location in ("png", "tar", "x.npz"):
        command = f"fid {location} --reference png --features {chain}/rae.safetensors"
        assert json.loads(mfkit(command).out)["frechet_distance"] == pytest.approx(0, abs=1e-2)
    assert mfkit(f"encode tar --rae {chain}/rae.safetensors -o again --preset digits").code == 0


@pytest.mark.parametrize("labels", ["3", "0,3,7", "random", "equal"])
def test_labels(labels: str, mfkit, chain: Path, tmp_path: Path) -> None:
    assert mfkit(f"sample {chain}/mft.safetensors -n 40 -o x.npz --labels {labels}").code == 0
    drawn = np.load(tmp_path / "x.npz")["arr_1"]
    expected = {"3": {3}, "0,3,7": {0, 3, 7}, "equal": set(range(10))}.get(labels)
    assert set(drawn) == expected if expected else len(set(drawn)) > 5


def test_the_uniform_grid_is_the_shifted_one_by_a_shift_of_one(mfkit, chain: Path) -> None:
    sample = f"sample {chain}/teacher.safetensors -n 2 --nfe 4 --rae {chain}/rae.safetensors"
    assert mfkit(f"{sample} --time-grid uniform -o uniform.npz").code == 0
    assert mfkit(f"{sample} --time-shift 1 -o shifted.npz").code == 0
    assert mfkit(f"{sample} -o own.npz").code == 0
    uniform, shifted, own = (np.load(f"{name}.npz")["arr_0"] for name in ("uniform", "shifted", "own"))
    assert (uniform == shifted).all() and (uniform != own).any()
    failed(mfkit(f"{sample} --time-grid uniform --time-shift 2 -o x.npz"), 2, "--time-shift does not move --time-grid")


def test_an_image_depends_on_seed_and_number_alone(mfkit, chain: Path, tmp_path: Path) -> None:
    for name, options in (("a", "-n 9"), ("b", "-n 5"), ("c", "-n 5 --seed 1")):
        assert mfkit(f"sample {chain}/mft.safetensors {options} -o {name}.npz --batch-size 3").code == 0
    a, b, c = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "abc")
    assert np.array_equal(a[:5], b) and not np.array_equal(a[:5], c)


@pytest.mark.parametrize(
    "command",
    [
        "encode digits:heldout --rae {}/rae.safetensors --mirror --dtype float32 --shard-size 130",
        "trajectories --teacher {}/teacher.safetensors -n 130 --solver-steps 4 --dtype float32 --shard-size 60",
        "sample {}/mft.safetensors -n 130 --format tar",
        "sample {}/mft.safetensors -n 60 --precision bf16 --format tar",
    ],
)
def test_batch_size_and_threads_change_no_byte(command: str, chain: Path, tmp_path: Path, mfkit) -> None:
    command = command.replace("{}", str(chain))
    before, found = torch.get_num_threads(), []
    for threads, batch in ((1, 100), (2, 100), (2, 7)):
        torch.set_num_threads(threads)
        try:
            assert mfkit(f"{command} --batch-size {batch} -o {threads}.{batch}").code == 0
        finally:
            torch.set_num_threads(before)
        found.append({path.name: path.read_bytes() for path in (tmp_path / f"{threads}.{batch}").glob("*.tar")})
    assert found[0] and all(other == found[0] for other in found)


def test_grid_alone(mfkit, chain: Path, tmp_path: Path) -> None:
    assert mfkit(f"sample {chain}/teacher.safetensors -n 25 --nfe 2 --grid g.png").out == "g.png\n"
    with Image.open(tmp_path / "g.png") as grid:
        assert grid.size == (660, 198)


def test_a_pipe_trains_without_a_disk(chain: Path, tmp_path: Path) -> None:
    teacher = f"--teacher {chain}/teacher.safetensors"
    solve = f"mfkit trajectories {teacher} -n 32 --solver-steps 4 --batch-size 16 -o -"
    train = f"mfkit midtrain - {teacher} --batch-size 16 --pairs 2"
    done = shell(f"{solve} | {train} --steps 4 -o cmt.safetensors", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cmt.safetensors\n", "")


def test_a_stream_of_latents_holds_what_a_folder_does(mfkit, chain: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "s.tar").write_bytes(mfkit(f"encode digits:train --rae {chain}/rae.safetensors -o -").raw)
    with (tmp_path / "s.tar").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        done = mfkit("train-teacher - -o t.safetensors --steps 2 --batch-size 16")
    assert done == Result(0, "t.safetensors\n", "")
    stored = dict(item for path in (chain / "latents").glob("*.tar") for item in members(path))
    assert dict(item for item in members(tmp_path / "s.tar") if not item[0].startswith("__")) == stored


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def test_overwriting_never_removes_what_mfkit_did_not_write(mfkit, chain: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    failed(mfkit(f"sample {chain}/mft.safetensors -n 1 -o photos --overwrite"), 4, "was not written by mfkit")
    assert (tmp_path / "photos" / "mine.txt").exists()
    shutil.copy(chain / "mft.safetensors", tmp_path)
    command = f"bootstrap --init mft.safetensors --latents {chain}/latents --steps 1 --batch-size 4 --overwrite"
    failed(mfkit(command), 4, "is an input of this command")
    assert (tmp_path / "mft.safetensors").exists()


def test_head_and_a_full_device_end_quietly(chain: Path, tmp_path: Path) -> None:
    solve = f"mfkit trajectories --teacher {chain}/teacher.safetensors -n 32 --solver-steps 4 --batch-size 4 -o -"
    done = shell(f"{solve} | head -c 100 > /dev/null", tmp_path)
    assert done.stderr == ""
    full = shell(f"{solve} > /dev/full", tmp_path)
    assert full.returncode == 4 and full.stderr.count("\n") == 1 and "No space left" in full.stderr


def test_an_interrupted_encode_goes_on_with_the_shards_it_has(mfkit, chain: Path, tmp_path: Path) -> None:
    """By an image that does not decode; it is mended then. What is finished is not written again."""
    (tmp_path / "images").mkdir()
    for number in range(30):
        Image.new("L", (32, 32), number).save(tmp_path / "images" / f"{number:02d}.png")
    broken, good = tmp_path / "images/21.png", (tmp_path / "images/21.png").read_bytes()
    broken.write_bytes(b"?" * len(good))
    command = f"encode images --rae {chain}/rae.safetensors --preset digits -o latents --shard-size 5 --batch-size 5"
    failed(mfkit(command), 3, "images/21.png does not decode")
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "latents").glob("*.tar")}
    assert len(finished) >= 2 and not (tmp_path / "latents" / "index.json").exists()
    broken.write_bytes(good)
    words = "latents was started with different settings (dtype was float16, is float32)"
    failed(mfkit(command + " --dtype float32"), 4, words)
    assert mfkit(command).code == 0
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "latents").glob("*.tar")}
    assert len(times) == 6 and all(times[name] == before for name, before in finished.items())


def test_a_bug_shows_its_traceback_and_asks_for_a_report(mfkit, chain: Path, monkeypatch) -> None:
    """An AssertionError of mfkit's own, while it reads a file, is not told as a damaged file."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("a thought of ours was wrong")

    for place in ("mfkit.artifacts.inspect.inspect", "mfkit.artifacts.artifact.parse_description"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            result = mfkit(f"inspect {chain}/teacher.safetensors")
        assert result.code == 1 and "Traceback" in result.err and "damaged" not in result.err
        last = result.err.splitlines()[-1]
        assert last.startswith("mfkit: error: unexpected error, please report it") and "AssertionError" in last


@pytest.mark.parametrize(
    ("command", "ways"),
    [
        (
            "distill --teacher {}/teacher.safetensors -o x.safetensors --steps 2 --batch-size 4",
            ["--micro-batch", "--activation-checkpointing", "--batch-size", "--precision bf16", "a checkpoint resumes"],
        ),
        ("sample {}/mft.safetensors -n 4 -o x.npz", ["--batch-size", "--precision bf16"]),
        ("trajectories --teacher {}/teacher.safetensors -n 4 -o x", ["--batch-size", "--precision bf16"]),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory_names_what_to_turn(command: str, ways: list[str], error, mfkit, chain, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("mfkit.models.dit.AverageVelocityDiT.forward", full)
    monkeypatch.setattr("mfkit.models.dit.VelocityDiT.forward", full)
    failed(mfkit(command.format(chain)), 6, "out of memory", *ways)


def test_the_hosts_memory_really_ends(chain: Path, tmp_path: Path) -> None:
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "import mfkit.commands.training\n"
        "from mfkit.commands.main import main\n"
        "held = resource.getpagesize() * int(Path('/proc/self/statm').read_text().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, 2 * [held + (1 << 29)])\n"
        "main()\n"
    )
    options = f"--teacher {chain}/teacher.safetensors -o x.safetensors --steps 1 --batch-size 4096 --workers 0"
    done = forked(code, ["distill", *options.split()], tmp_path)
    assert done.returncode == 6 and done.stderr.count("\n") == 1 and "--micro-batch" in done.stderr, done.stderr
