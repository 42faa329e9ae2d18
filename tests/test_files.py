"""Files that describe themselves: round trips, provenance, strict loading, whole writes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mfkit as package
from mfkit.artifacts.artifact import Provenance, open_artifact, record_provenance
from mfkit.artifacts.atomic import atomic_write, exclusive_output
from mfkit.artifacts.network_weights import load_weights
from mfkit.data.latents import check_recorded, open_latents, recorded_latents
from mfkit.errors import InputError, OutputError
from mfkit.models.dit import DIT_DH, AverageVelocityDiT, DiTConfig, VelocityDiT
from mfkit.models.files import save_generator

pytestmark = pytest.mark.fast

CONFIG = DiTConfig(
    channels=4, side=2, num_classes=3, width=8, depth=1, heads=2, head_width=16, head_depth=1, head_heads=2
)
DESCRIBED = {"time_shift": 2.0, "class_names": ["a", "b", "c"]}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_generator(path, VelocityDiT(CONFIG), DIT_DH.name, DESCRIBED, Provenance(seed=4))
    return path


def test_a_network_comes_back_from_its_file_alone(teacher: Path) -> None:
    network = package.load(teacher)
    assert isinstance(network, VelocityDiT) and network.config == CONFIG and not network.training
    for name, value in load_file(teacher).items():
        assert torch.equal(network.state_dict()[name], value)
    artifact = open_artifact(teacher)
    assert artifact.config["time_shift"] == 2.0 and artifact.provenance.seed == 4


def test_students_are_called_with_two_times(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_generator(path, AverageVelocityDiT(CONFIG), DIT_DH.name, DESCRIBED, Provenance())
    student = package.load(path)
    times = torch.tensor([0.2, 0.5])
    assert student(torch.randn(2, 4, 2, 2), times, times + 0.1, torch.tensor([0, 3])).shape == (2, 4, 2, 2)


def test_files_are_readable_by_others(teacher: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert teacher.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_truncated_weights_are_named(teacher: Path, cut: int) -> None:
    teacher.write_bytes(teacher.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"teacher\.safetensors is (truncated|not a safetensors file)"):
        package.load(teacher)


def test_weights_of_another_kind_or_origin_are_refused(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a teacher file; expected: student"):
        open_artifact(teacher, kinds=("student",))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="mfkit did not write it"):
        package.load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        package.load(tmp_path / "nothing.safetensors")


def test_weights_are_loaded_strictly(teacher: Path) -> None:
    network, tensors = VelocityDiT(CONFIG), load_file(teacher)
    del tensors["pos_embed"]
    tensors["r_embedder.W"] = torch.zeros(256)
    tensors["final_layer.linear.bias"] = torch.zeros(9)
    with pytest.raises(InputError) as error:
        load_weights(network, tensors, teacher)
    for part in ("missing pos_embed", "unexpected r_embedder.W", r"final_layer.linear.bias is (9,), not (4,)"):
        assert part in str(error.value)


def test_provenance_holds_the_whole_chain(chain: Path) -> None:
    record = open_artifact(chain / "mft.safetensors").provenance
    assert record.command.startswith("mfkit bootstrap --init mfd.safetensors")
    assert set(record.inputs) == {"init", "latents", "rae"}
    commands = " ".join(entry.command for entry in record.history.values())
    for command in ("train-rae", "encode", "train-teacher", "trajectories", "midtrain", "distill"):
        assert f"mfkit {command} " in commands
    digests = {role: entry.digest for role, entry in record.inputs.items()}
    assert digests["init"] == open_artifact(chain / "mfd.safetensors").digest
    assert digests["rae"] == open_artifact(chain / "rae.safetensors").digest


def test_recorded_inputs_are_found_after_a_move(chain: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(chain, moved)
    teacher = open_artifact(moved / "teacher.safetensors")
    location = recorded_latents(teacher, None)
    assert Path(location) == moved / "latents"
    check_recorded(teacher, open_latents("latents", location), None)


def test_changed_and_lost_inputs_are_errors_that_name_the_option(chain: Path, tmp_path: Path) -> None:
    for name in ("teacher.safetensors", "rae.safetensors"):
        shutil.copy(chain / name, tmp_path / name)
    teacher = open_artifact(tmp_path / "teacher.safetensors")
    with pytest.raises(InputError, match="latents, the latents of .* is gone; pass --latents"):
        recorded_latents(teacher, None)
    shutil.copytree(chain / "latents", tmp_path / "latents")
    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    (tmp_path / "latents" / "index.json").write_text(json.dumps(index | {"samples": 1}))
    with pytest.raises(InputError, match="has changed since .* --latents"):
        check_recorded(teacher, open_latents("latents", recorded_latents(teacher, None)), None)


def test_inputs_are_recorded_relative_to_the_output(teacher: Path, tmp_path: Path) -> None:
    record = record_provenance(tmp_path / "deep" / "down", {"teacher": open_artifact(teacher)}, seed=None)
    assert record.inputs["teacher"].path == "../../teacher.safetensors"


def test_digits_is_recorded_as_a_word_beside_a_folder_of_that_name(chain: Path, tmp_path: Path, mfkit) -> None:
    (tmp_path / "digits").mkdir()
    assert mfkit(f"encode digits --rae {chain}/rae.safetensors -o latents").code == 0
    assert open_artifact(tmp_path / "latents").inputs["images"].path == "digits"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "x") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_in_one_line() -> None:
    with pytest.raises(OutputError, match="cannot write /dev/full"), atomic_write(Path("/dev/full")):
        raise OSError(28, "No space left on device")


def test_outputs_are_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("kept")
    with pytest.raises(OutputError, match="exists; pass --overwrite"), exclusive_output(path, overwrite=False):
        pass
    with exclusive_output(path, overwrite=True):
        assert path.read_text() == "kept"  # until the new one is whole
        with pytest.raises(OutputError, match="another command is writing"), exclusive_output(path, overwrite=True):
            pass
    with pytest.raises(OutputError, match="is an input"), exclusive_output(path, overwrite=True, inputs=[path]):
        pass
    with pytest.raises(OutputError, match="is a folder"), exclusive_output(tmp_path, overwrite=True):
        pass
    assert list(tmp_path.iterdir()) == [path]
